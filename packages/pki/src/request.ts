import { createPublicKey, sign, verify, type KeyObject } from 'node:crypto';
import { DroverError } from '@drover/foundation';
import { CertificationRequest } from '@peculiar/asn1-csr';
import { AsnConvert } from '@peculiar/asn1-schema';
import { newKeyPair, signatureAlgorithm } from './crypto.ts';
import { bitString, integer, sequence, tagged, type Der } from './der.ts';
import { maxRequestBytes } from './limits.ts';
import type { KeyAndRequest } from './pki.ts';

/** Creates a key pair and a request to sign its public key. The request has no subject: names come from the CA. */
export function createKeyAndRequest(): KeyAndRequest {
  const { privateKey, privateKeyPem, publicKey } = newKeyPair();
  // RFC 2986, section 4: version 1, no subject, no attributes.
  const unsigned = sequence(integer(0), sequence(), publicKey, tagged(0));
  return { keyPem: privateKeyPem, csrDer: sequence(unsigned, signatureAlgorithm, bitString(sign('sha256', unsigned, privateKey))) };
}

/** The public key of a request. The request's signature proves that its sender holds the private key. @throws {DroverError} invalid-argument */
export function publicKeyOfRequest(csrDer: Uint8Array): Der {
  const refuse = (why: string, cause?: unknown): DroverError =>
    new DroverError('invalid-argument', `the certificate request is refused: ${why}`, {
      hint: 'send a PKCS #10 request for a P-256 key',
      cause,
    });
  if (csrDer.byteLength > maxRequestBytes) throw refuse(`it has more than ${maxRequestBytes} bytes`);
  let key: KeyObject;
  let isGenuine: boolean;
  try {
    const { certificationRequestInfo, certificationRequestInfoRaw, signature } = AsnConvert.parse(csrDer, CertificationRequest);
    key = parseKey(new Uint8Array(AsnConvert.serialize(certificationRequestInfo.subjectPKInfo)));
    const signed = new Uint8Array(certificationRequestInfoRaw ?? new ArrayBuffer(0));
    isGenuine = verify('sha256', signed, key, new Uint8Array(signature));
  } catch (error) {
    throw refuse('it cannot be read', error);
  }
  if (!isOnP256(key)) throw refuse('its key is not on P-256');
  if (!isGenuine) throw refuse('its signature does not match its key');
  return derOf(key);
}

/** Checks a public key. @param spkiDer SubjectPublicKeyInfo @throws {DroverError} invalid-argument */
export function publicKeyOf(spkiDer: Uint8Array): Der {
  const refuse = (why: string, cause?: unknown): DroverError =>
    new DroverError('invalid-argument', `the public key is refused: ${why}`, { hint: 'use a P-256 key', cause });
  if (spkiDer.byteLength > maxRequestBytes) throw refuse(`it has more than ${maxRequestBytes} bytes`);
  let key: KeyObject;
  try {
    key = parseKey(spkiDer);
  } catch (error) {
    throw refuse('it cannot be read', error);
  }
  if (!isOnP256(key)) throw refuse('it is not on P-256');
  return derOf(key);
}

/** @throws an error of OpenSSL, also for a point that is not on its curve */
function parseKey(spkiDer: Uint8Array): KeyObject {
  return createPublicKey({ key: Buffer.from(spkiDer), format: 'der', type: 'spki' });
}

function isOnP256(key: KeyObject): boolean {
  return key.asymmetricKeyDetails?.namedCurve === 'prime256v1';
}

/** The key in the one form that OpenSSL writes. */
function derOf(key: KeyObject): Der {
  return key.export({ type: 'spki', format: 'der' });
}
