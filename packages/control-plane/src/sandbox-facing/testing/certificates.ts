import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createKeyAndRequest, thumbprintOf, type CertificateAuthority } from '@drover/pki';
// Imported after pki, which loads its prerequisites.
import * as x509 from '@peculiar/x509';

/** PEM. The presented chain, leaf first. */
export interface Credentials {
  readonly certificatePem: string;
  readonly keyPem: string;
  readonly thumbprint: string;
}

export interface Leaf {
  readonly commonNames?: readonly string[];
  readonly uris: readonly string[];
  readonly usages?: readonly x509.ExtendedKeyUsageType[];
}

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const newKeys = () => crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);

/** A certificate as the authority issues it for sandboxes and hosts. */
export async function issue(
  sign: (csrDer: Uint8Array) => Promise<{ readonly certificatePem: string; readonly thumbprint: string }>,
): Promise<Credentials> {
  const { keyPem, csrDer } = createKeyAndRequest();
  const { certificatePem, thumbprint } = await sign(csrDer);
  return { certificatePem, keyPem, thumbprint };
}

/** A leaf that no authority would issue, signed with the key of `by`. */
export async function signedBy(by: Omit<Credentials, 'thumbprint'>, leaf: Leaf): Promise<Credentials> {
  const signingKey = await crypto.subtle.importKey('pkcs8', x509.PemConverter.decodeFirst(by.keyPem), algorithm, false, ['sign']);
  return await make(leaf, await newKeys(), { signingKey, issuer: new x509.X509Certificate(by.certificatePem).subject });
}

/** As `signedBy`, with the key of the authority in `directory`. */
export async function signByHand(ca: CertificateAuthority, directory: string, leaf: Leaf): Promise<Credentials> {
  return await signedBy({ certificatePem: ca.caPem, keyPem: await readFile(join(directory, 'ca-key.pem'), 'utf8') }, leaf);
}

export async function selfSigned(leaf: Leaf): Promise<Credentials> {
  const keys = await newKeys();
  return await make(leaf, keys, { signingKey: keys.privateKey, issuer: subjectOf(leaf) });
}

function subjectOf({ commonNames = ['red.box'] }: Leaf): string {
  return commonNames.map((name) => `CN=${name}`).join(', ');
}

async function make(
  leaf: Leaf,
  keys: Awaited<ReturnType<typeof newKeys>>,
  by: { readonly signingKey: CryptoKey; readonly issuer: string },
): Promise<Credentials> {
  const certificate = await x509.X509CertificateGenerator.create({
    subject: subjectOf(leaf),
    ...by,
    notBefore: new Date(Date.now() - 60_000),
    notAfter: new Date(Date.now() + 3_600_000),
    signingAlgorithm: algorithm,
    publicKey: keys.publicKey,
    extensions: [
      ...(leaf.usages === undefined ? [] : [new x509.ExtendedKeyUsageExtension([...leaf.usages])]),
      new x509.SubjectAlternativeNameExtension(leaf.uris.map((value) => ({ type: 'url', value }))),
    ],
  });
  const certificatePem = `${certificate.toString('pem')}\n`;
  const keyPem = x509.PemConverter.encode(await crypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY');
  return { certificatePem, keyPem, thumbprint: thumbprintOf(certificatePem) };
}
