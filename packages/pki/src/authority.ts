import { createHash, createPrivateKey, randomBytes, sign, type KeyObject } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, systemClock, writeFileAtomic, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import { clientAuth, serverAuth, thumbprintOf } from './certificate.ts';
import { exportPrivateKey, generateKeyPair, keyAlgorithm, newKeyPair, signatureAlgorithm, x509 } from './crypto.ts';
import { bitString, integer, objectId, pem, sequence, set, tagged, time, utf8String, type Der } from './der.ts';
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
  let key: KeyObject;
  let certificate: x509.X509Certificate;
  try {
    key = createPrivateKey(await readFile(keyPath, 'utf8'));
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
  const shared = [
    new x509.BasicConstraintsExtension(false, undefined, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
    await x509.AuthorityKeyIdentifierExtension.create(certificate),
  ];
  const subject = new Uint8Array(certificate.subjectName.toArrayBuffer());
  return new Authority(names, caPem, { key, subject, shared: shared.map(derOf) }, clock, lifetimes);
}

interface Issuer {
  readonly key: KeyObject;
  readonly subject: Der;
  /** The extensions that all certificates have. */
  readonly shared: readonly Der[];
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
    const keys = newKeyPair();
    const leaf = this.#issue({
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
    return { ...leaf, certificatePem: leaf.certificatePem + this.caPem, keyPem: keys.privateKeyPem };
  }

  async signHost(id: HostId, csrDer: Uint8Array): Promise<IssuedCertificate> {
    return this.#issue({
      commonName: id,
      publicKey: publicKeyOfRequest(csrDer),
      lifetimeMs: this.#lifetimes.hostMs ?? hostLifetimeMs,
      usages: clientOnly,
      names: [{ type: 'url', value: this.names.host(id) }],
    });
  }

  async signSandbox(id: SandboxId, commonName: string, csrDer: Uint8Array): Promise<IssuedCertificate> {
    return this.#issueSandbox(id, commonName, publicKeyOfRequest(csrDer));
  }

  async renewSandbox(id: SandboxId, commonName: string, spkiDer: Uint8Array): Promise<IssuedCertificate> {
    return this.#issueSandbox(id, commonName, publicKeyOf(spkiDer));
  }

  #issueSandbox(id: SandboxId, commonName: string, publicKey: Der): IssuedCertificate {
    return this.#issue({
      commonName,
      publicKey,
      lifetimeMs: this.#lifetimes.sandboxMs ?? sandboxLifetimeMs,
      usages: serverAndClient,
      names: [{ type: 'url', value: this.names.sandbox(id) }],
    });
  }

  /** Writes and signs a certificate (RFC 5280, section 4.1). */
  #issue({ commonName, publicKey, lifetimeMs, usages, names }: LeafOptions): IssuedCertificate {
    const { key, subject: issuer, shared } = this.#issuer;
    const now = this.#clock.now();
    const notAfter = now + lifetimeMs;
    const validity = sequence(time(now - clockSkewMs), time(notAfter));
    const subject = sequence(set(sequence(objectId(commonNameId), utf8String(commonName))));
    const extensions = sequence(...shared, usages, derOf(new x509.SubjectAlternativeNameExtension([...names])));
    const unsigned = sequence(
      tagged(0, integer(2)),
      integer(...newSerialNumber()),
      signatureAlgorithm,
      issuer,
      validity,
      subject,
      publicKey,
      tagged(3, extensions),
    );
    const certificate = sequence(unsigned, signatureAlgorithm, bitString(sign('sha256', unsigned, key)));
    const thumbprint = createHash('sha256').update(certificate).digest('hex');
    return { certificatePem: pem('CERTIFICATE', certificate), notAfter, thumbprint };
  }
}

/** id-at-commonName (RFC 5280, appendix A.1). */
const commonNameId = '2.5.4.3';
const serverAndClient = derOf(new x509.ExtendedKeyUsageExtension([serverAuth, clientAuth]));
const clientOnly = derOf(new x509.ExtendedKeyUsageExtension([clientAuth]));

function derOf({ rawData }: x509.Extension): Der {
  return new Uint8Array(rawData);
}

interface LeafOptions {
  readonly commonName: string;
  /** SubjectPublicKeyInfo. */
  readonly publicKey: Der;
  readonly lifetimeMs: number;
  readonly usages: Der;
  readonly names: readonly { readonly type: 'url' | 'dns' | 'ip'; readonly value: string }[];
}

/** The key is written first, so that a crash in between leaves no certificate without its key. */
async function createAuthority(certificatePath: string, keyPath: string, trustDomain: string, now: number): Promise<string> {
  const keys = await generateKeyPair();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerialNumber().toString('hex'),
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
function newSerialNumber(): Buffer {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes;
}

async function readIfPresent(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
