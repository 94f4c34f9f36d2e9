import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, systemClock, writeFileAtomic, type Clock, type SandboxId } from '@drover/foundation';
import { clientAuth, serverAuth, thumbprintOf } from './certificate.ts';
import { exportPrivateKey, generateKeyPair, importPrivateKey, keyAlgorithm, x509 } from './crypto.ts';
import { caLifetimeMs, clockSkewMs, controlPlaneLifetimeMs, hostLifetimeMs, sandboxLifetimeMs } from './limits.ts';
import { namesOf } from './names.ts';
import type { CertificateAuthority, IssuedCertificate } from './pki.ts';
import { publicKeyOf, publicKeyOfRequest } from './request.ts';

interface AuthorityOptions {
  /** Taken when the authority is made; one that exists keeps its own, and another here is refused. */
  readonly trustDomain: string;
  readonly clock?: Clock;
  /** For tests of expiry. Milliseconds. */
  readonly lifetimes?: { readonly hostMs?: number; readonly sandboxMs?: number; readonly controlPlaneMs?: number };
}

/**
 * Opens the authority in `directory` (`ca.pem`, `ca-key.pem`), making it on first use. The key is written first, so that a
 * crash in between leaves no certificate without its key.
 * @throws {DroverError} invalid-config when what is there cannot be read or belongs to another trust domain (I-28)
 */
export async function openCertificateAuthority(directory: string, options: AuthorityOptions): Promise<CertificateAuthority> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const names = namesOf(options.trustDomain);
  const clock = options.clock ?? systemClock;
  const certificatePath = join(directory, 'ca.pem');
  const keyPath = join(directory, 'ca-key.pem');
  const stored = await readIfThere(certificatePath);
  const caPem = stored ?? (await makeAuthority(certificatePath, keyPath, names.trustDomain, clock.now()));
  let caKey: CryptoKey;
  let caCertificate: x509.X509Certificate;
  try {
    caKey = await importPrivateKey(await readFile(keyPath, 'utf8'));
    caCertificate = new x509.X509Certificate(caPem);
  } catch (error) {
    throw new DroverError('invalid-config', `the certificate authority in ${directory} cannot be read`, {
      hint: `restore ${certificatePath} and ${keyPath} from a backup; moving both away makes a new authority, and every host has to join again`,
      cause: error,
    });
  }
  const expected = `spiffe://${names.trustDomain}`;
  const uris = caCertificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
  if (!uris.some((name) => name.type === 'url' && name.value === expected)) {
    throw new DroverError('invalid-config', `the certificate authority in ${directory} is not that of trust domain ${names.trustDomain}`, {
      hint: 'give the trust domain it was made with, or another data directory',
    });
  }

  // What every certificate has alike is encoded once: to encode and parse is most of what one costs.
  const issuer = caCertificate.subjectName;
  const ofEveryLeaf = [
    new x509.BasicConstraintsExtension(false, undefined, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
    await x509.AuthorityKeyIdentifierExtension.create(caCertificate),
  ];

  async function issue(leaf: LeafOptions): Promise<IssuedCertificate> {
    const now = clock.now();
    const notAfter = now + leaf.lifetimeMs;
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: newSerialNumber(),
      subject: [{ CN: [leaf.commonName] }],
      issuer,
      notBefore: new Date(now - clockSkewMs),
      notAfter: new Date(notAfter),
      signingKey: caKey,
      publicKey: leaf.publicKey,
      signingAlgorithm: keyAlgorithm,
      extensions: [...ofEveryLeaf, leaf.usages, new x509.SubjectAlternativeNameExtension([...leaf.names])],
    });
    const thumbprint = createHash('sha256').update(new Uint8Array(certificate.rawData)).digest('hex');
    return { certificatePem: `${certificate.toString('pem')}\n`, notAfter, thumbprint };
  }

  const issueSandbox = async (id: SandboxId, commonName: string, publicKey: x509.PublicKey): Promise<IssuedCertificate> =>
    await issue({
      commonName,
      publicKey,
      lifetimeMs: options.lifetimes?.sandboxMs ?? sandboxLifetimeMs,
      usages: serverAndClient,
      names: [{ type: 'url', value: names.sandbox(id) }],
    });

  return {
    names,
    caPem,
    fingerprint: thumbprintOf(caPem),
    async issueControlPlane({ dnsNames, ipAddresses }) {
      const keys = await generateKeyPair();
      const leaf = await issue({
        commonName: 'control-plane',
        publicKey: keys.publicKey,
        lifetimeMs: options.lifetimes?.controlPlaneMs ?? controlPlaneLifetimeMs,
        usages: serverAndClient,
        names: [
          { type: 'url', value: names.controlPlane() },
          ...dnsNames.map((value) => ({ type: 'dns' as const, value })),
          ...ipAddresses.map((value) => ({ type: 'ip' as const, value })),
        ],
      });
      // The chain carries the CA, so that a host that knows only its fingerprint can check it (L-1).
      return { ...leaf, certificatePem: leaf.certificatePem + caPem, keyPem: await exportPrivateKey(keys.privateKey) };
    },
    async signHost(id, csrDer) {
      return await issue({
        commonName: id,
        publicKey: await publicKeyOfRequest(csrDer),
        lifetimeMs: options.lifetimes?.hostMs ?? hostLifetimeMs,
        usages: clientOnly,
        names: [{ type: 'url', value: names.host(id) }],
      });
    },
    async signSandbox(id, commonName, csrDer) {
      return await issueSandbox(id, commonName, await publicKeyOfRequest(csrDer));
    },
    async renewSandbox(id, commonName, spkiDer) {
      return await issueSandbox(id, commonName, publicKeyOf(spkiDer));
    },
  };
}

const serverAndClient = new x509.ExtendedKeyUsageExtension([serverAuth, clientAuth]);
const clientOnly = new x509.ExtendedKeyUsageExtension([clientAuth]);

interface LeafOptions {
  readonly commonName: string;
  readonly publicKey: x509.PublicKeyType;
  readonly lifetimeMs: number;
  readonly usages: x509.ExtendedKeyUsageExtension;
  readonly names: readonly { readonly type: 'url' | 'dns' | 'ip'; readonly value: string }[];
}

async function makeAuthority(certificatePath: string, keyPath: string, trustDomain: string, now: number): Promise<string> {
  const keys = await generateKeyPair();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerialNumber(),
    name: [{ CN: ['Drover CA'] }, { O: [trustDomain] }],
    notBefore: new Date(now - clockSkewMs),
    notAfter: new Date(now + caLifetimeMs),
    keys,
    signingAlgorithm: keyAlgorithm,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      new x509.SubjectAlternativeNameExtension([{ type: 'url', value: `spiffe://${trustDomain}` }]),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  const pem = `${certificate.toString('pem')}\n`;
  await writeFileAtomic(keyPath, await exportPrivateKey(keys.privateKey), 0o600);
  await writeFileAtomic(certificatePath, pem, 0o644);
  return pem;
}

/** 127 random bits: positive, as RFC 5280, section 4.1.2.2 wants it. */
function newSerialNumber(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes.toString('hex');
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
