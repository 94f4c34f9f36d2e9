// @peculiar/x509 resolves its algorithms through tsyringe, which needs the metadata API first.
import 'reflect-metadata';
import { generateKeyPairSync, webcrypto, type KeyObject } from 'node:crypto';
import * as x509 from '@peculiar/x509';
import { objectId, sequence, type Der } from './der.ts';

x509.cryptoProvider.set(webcrypto);

export { x509 };

/** The algorithm of all of Drover's keys: ECDSA on P-256 with SHA-256. */
export const keyAlgorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

export async function generateKeyPair(): Promise<webcrypto.CryptoKeyPair> {
  return await webcrypto.subtle.generateKey(keyAlgorithm, true, ['sign', 'verify']);
}

/** PKCS #8, PEM. */
export async function exportPrivateKey(key: CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', key), 'PRIVATE KEY');
}

/** AlgorithmIdentifier of ecdsa-with-SHA256 (RFC 5758, section 3.2). */
export const signatureAlgorithm: Der = sequence(objectId('1.2.840.10045.4.3.2'));

export interface NewKeyPair {
  readonly privateKey: KeyObject;
  /** PKCS #8. */
  readonly privateKeyPem: string;
  /** SubjectPublicKeyInfo. */
  readonly publicKey: Der;
}

/** In this thread: it takes less time than to hand it to another. */
export function newKeyPair(): NewKeyPair {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return {
    privateKey,
    privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }),
    publicKey: publicKey.export({ type: 'spki', format: 'der' }),
  };
}
