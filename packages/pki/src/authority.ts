import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, systemClock, writeFileAtomic, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import { clientAuth, serverAuth, thumbprintOf } from './certificate.ts';
import { exportPrivateKey, generateKeyPair, importPrivateKey, keyAlgorithm, x509 } from './crypto.ts';
import { caLifetimeMs, clockSkewMs, controlPlaneLifetimeMs, hostLifetimeMs, sandboxLifetimeMs } from './limits.ts';
import { namesOf } from './names.ts';
import type { CertificateAuthority, IssuedCertificate, Names } from './pki.ts';
import { publicKeyOf, publicKeyOfRequest } from './request.ts';

interface AuthorityOptions {
  /** An existing authority keeps its own; another one is refused. */
  readonly trustDomain: string;
  readonly clock?: Clock;
  /** For tests of expiry. Milliseconds. */
  readonly lifetimes?: { readonly hostMs?: number; readonly sandboxMs?: number; readonly controlPlaneMs?: number };
}

/**
 * Opens the authority in `directory` (`ca.pem`, `ca-key.pem`), and creates it on first use.
 * @throws {DroverError} invalid-config when its files cannot be read or belong to another trust domain (I-28)
 */
export async function openCertificateAuthority(directory: string, options: AuthorityOptions): Promise<CertificateAuthority> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const { trustDomain, clock = systemClock, lifetimes = {} } = options;
  const names = namesOf(trustDomain);
  const certificatePath = join(directory, 'ca.pem');
  const keyPath = join(directory, 'ca-key.pem');
  const caPem = (await readIfPresent(certificatePath)) ?? (await createAuthority(certificatePath, keyPath, trustDomain, clock.now()));
  let key: CryptoKey;
  let certificate: x509.X509Certificate;
  try {
    key = await importPrivateKey(await readFile(keyPath, 'utf8'));
    certificate = new x509.X509Certificate(caPem);
  } catch (error) {
    throw new DroverError('invalid-config', `the certificate authority in ${directory} cannot be read`, {
      hint: `restore ${certificatePath} and ${keyPath} from a backup; moving both away makes a new authority, and every host has to join again`,
      cause: error,
    });
  }
  const uris = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
  if (!uris.some((name) => name.type === 'url' && name.value === `spiffe://${trustDomain}`)) {
    throw new DroverError('invalid-config', `the certificate authority in ${directory} is not that of trust domain ${trustDomain}`, {
      hint: 'use the trust domain that it was created with, or another data directory',
    });
  }
  // Encoding and parsing are most of the cost of a certificate: the extensions that all of them share are encoded once.
  const shared = [
    new x509.BasicConstraintsExtension(false, undefined, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
    await x509.AuthorityKeyIdentifierExtension.create(certificate),
  ];
  return new Authority(names, caPem, { key, subject: certificate.subjectName, shared }, clock, lifetimes);
}

interface Issuer {
  readonly key: CryptoKey;
  readonly subject: x509.Name;
  readonly shared: readonly x509.Extension[];
}

class Authority implements CertificateAuthority {
  readonly names: Names;
  readonly caPem: string;
  readonly fingerprint: string;
  readonly #issuer: Issuer;
  readonly #clock: Clock;
  readonly #lifetimes: NonNullable<AuthorityOptions['lifetimes']>;

  constructor(names: Names, caPem: string, issuer: Issuer, clock: Clock, lifetimes: NonNullable<AuthorityOptions['lifetimes']>) {
    this.names = names;
    this.caPem = caPem;
    this.fingerprint = thumbprintOf(caPem);
    this.#issuer = issuer;
    this.#clock = clock;
    this.#lifetimes = lifetimes;
  }

  async issueControlPlane({ dnsNames, ipAddresses }: Parameters<CertificateAuthority['issueControlPlane']>[0]) {
    const keys = await generateKeyPair();
    const leaf = await this.#issue({
      commonName: 'control-plane',
      publicKey: keys.publicKey,
      lifetimeMs: this.#lifetimes.controlPlaneMs ?? controlPlaneLifetimeMs,
      usages: serverAndClient,
      names: [
        { type: 'url', value: this.names.controlPlane() },
        ...dnsNames.map((value) => ({ type: 'dns' as const, value })),
        ...ipAddresses.map((value) => ({ type: 'ip' as const, value })),
      ],
    });
    // The chain includes the CA, so that a host that knows only its fingerprint can verify it (L-1).
    return { ...leaf, certificatePem: leaf.certificatePem + this.caPem, keyPem: await exportPrivateKey(keys.privateKey) };
  }

  async signHost(id: HostId, csrDer: Uint8Array): Promise<IssuedCertificate> {
    return await this.#issue({
      commonName: id,
      publicKey: await publicKeyOfRequest(csrDer),
      lifetimeMs: this.#lifetimes.hostMs ?? hostLifetimeMs,
      usages: clientOnly,
      names: [{ type: 'url', value: this.names.host(id) }],
    });
  }

  async signSandbox(id: SandboxId, commonName: string, csrDer: Uint8Array): Promise<IssuedCertificate> {
    return await this.#issueSandbox(id, commonName, await publicKeyOfRequest(csrDer));
  }

  async renewSandbox(id: SandboxId, commonName: string, spkiDer: Uint8Array): Promise<IssuedCertificate> {
    return await this.#issueSandbox(id, commonName, publicKeyOf(spkiDer));
  }

  async #issueSandbox(id: SandboxId, commonName: string, publicKey: x509.PublicKey): Promise<IssuedCertificate> {
    return await this.#issue({
      commonName,
      publicKey,
      lifetimeMs: this.#lifetimes.sandboxMs ?? sandboxLifetimeMs,
      usages: serverAndClient,
      names: [{ type: 'url', value: this.names.sandbox(id) }],
    });
  }

  async #issue(leaf: LeafOptions): Promise<IssuedCertificate> {
    const now = this.#clock.now();
    const notAfter = now + leaf.lifetimeMs;
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: newSerialNumber(),
      subject: [{ CN: [leaf.commonName] }],
      issuer: this.#issuer.subject,
      notBefore: new Date(now - clockSkewMs),
      notAfter: new Date(notAfter),
      signingKey: this.#issuer.key,
      publicKey: leaf.publicKey,
      signingAlgorithm: keyAlgorithm,
      extensions: [...this.#issuer.shared, leaf.usages, new x509.SubjectAlternativeNameExtension([...leaf.names])],
    });
    const thumbprint = createHash('sha256').update(new Uint8Array(certificate.rawData)).digest('hex');
    return { certificatePem: `${certificate.toString('pem')}\n`, notAfter, thumbprint };
  }
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

/** The key is written first, so that a crash in between leaves no certificate without its key. */
async function createAuthority(certificatePath: string, keyPath: string, trustDomain: string, now: number): Promise<string> {
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

/** 127 random bits: a positive number (RFC 5280, section 4.1.2.2). */
function newSerialNumber(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes.toString('hex');
}

async function readIfPresent(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
