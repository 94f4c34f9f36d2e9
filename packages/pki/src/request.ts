import { DroverError } from '@drover/foundation';
import { exportPrivateKey, generateKeyPair, keyAlgorithm, x509 } from './crypto.ts';
import { maxRequestBytes } from './limits.ts';
import type { KeyAndRequest } from './pki.ts';

/** Creates a key pair and a request to sign its public key. The request has no subject: names come from the CA. */
export async function createKeyAndRequest(): Promise<KeyAndRequest> {
  const keys = await generateKeyPair();
  const request = await x509.Pkcs10CertificateRequestGenerator.create({ keys, signingAlgorithm: keyAlgorithm });
  return { keyPem: await exportPrivateKey(keys.privateKey), csrDer: new Uint8Array(request.rawData) };
}

/** The public key of a request. The request's signature proves that its sender holds the private key. @throws {DroverError} invalid-argument */
export async function publicKeyOfRequest(csrDer: Uint8Array): Promise<x509.PublicKey> {
  const refuse = (why: string, cause?: unknown): DroverError =>
    new DroverError('invalid-argument', `the certificate request is refused: ${why}`, {
      hint: 'send a PKCS #10 request for a P-256 key',
      cause,
    });
  if (csrDer.byteLength > maxRequestBytes) throw refuse(`it has more than ${maxRequestBytes} bytes`);
  let request: x509.Pkcs10CertificateRequest;
  try {
    request = new x509.Pkcs10CertificateRequest(new Uint8Array(csrDer));
  } catch (error) {
    throw refuse('it cannot be read', error);
  }
  if (!isOnP256(request.publicKey)) throw refuse('its key is not on P-256');
  const genuine = await request.verify().catch(() => false);
  if (!genuine) throw refuse('its signature does not match its key');
  return request.publicKey;
}

/** Parses a public key. @param spkiDer SubjectPublicKeyInfo @throws {DroverError} invalid-argument */
export function publicKeyOf(spkiDer: Uint8Array): x509.PublicKey {
  const refuse = (why: string, cause?: unknown): DroverError =>
    new DroverError('invalid-argument', `the public key is refused: ${why}`, { hint: 'use a P-256 key', cause });
  if (spkiDer.byteLength > maxRequestBytes) throw refuse(`it has more than ${maxRequestBytes} bytes`);
  let key: x509.PublicKey;
  try {
    key = new x509.PublicKey(new Uint8Array(spkiDer));
  } catch (error) {
    throw refuse('it cannot be read', error);
  }
  if (!isOnP256(key)) throw refuse('it is not on P-256');
  return key;
}

function isOnP256(key: x509.PublicKey): boolean {
  const { name, namedCurve } = key.algorithm as { name?: string; namedCurve?: string };
  return name === 'ECDSA' && namedCurve === 'P-256';
}
