import { DroverError } from '@drover/foundation';
import { exportPrivateKey, generateKeyPair, keyAlgorithm, x509 } from './crypto.ts';
import { maxRequestBytes } from './limits.ts';
import type { KeyAndRequest } from './pki.ts';

/** Makes a key pair on this machine and a request to sign its public half. The request names nobody: names come from the CA. */
export async function createKeyAndRequest(): Promise<KeyAndRequest> {
  const keys = await generateKeyPair();
  const request = await x509.Pkcs10CertificateRequestGenerator.create({ keys, signingAlgorithm: keyAlgorithm });
  return { keyPem: await exportPrivateKey(keys.privateKey), csrDer: new Uint8Array(request.rawData) };
}

/**
 * The public key of a request whose signature proves that the sender holds the private one.
 * @throws {DroverError} invalid-argument
 */
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
  const { name, namedCurve } = request.publicKey.algorithm as { name?: string; namedCurve?: string };
  if (name !== 'ECDSA' || namedCurve !== 'P-256') throw refuse('its key is not on P-256');
  const genuine = await request.verify().catch(() => false);
  if (!genuine) throw refuse('its signature does not match its key');
  return request.publicKey;
}
