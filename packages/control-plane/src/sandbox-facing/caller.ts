import type { X509Certificate } from 'node:crypto';
import { createContextKey, type ContextValues } from '@connectrpc/connect';
import { DroverError, type HostId, type SandboxId } from '@drover/foundation';
import { clientAuth, hasKeyUsage, subjectOf, validityOf, type Names } from '@drover/pki';
import type { Identity } from '../model/index.ts';

/** The origin of a connection, as its host reports it, and the certificate of its peer, which TLS has verified. */
export interface Caller {
  readonly hostId: HostId;
  /** The host's interface of the network of origin, the sandbox that this network belongs to, and the peer's address in it. */
  readonly interface: string;
  readonly networkOf: SandboxId;
  readonly peerAddress: string;
  /** Undefined if the certificate is not that of a sandbox. */
  readonly certificate: SandboxCertificate | undefined;
}

export interface SandboxCertificate {
  /** SHA-256 of the DER, lower-case hex. */
  readonly thumbprint: string;
  /** Empty if the certificate has none or several. */
  readonly commonName: string;
  /** Of its one URI SAN (I-14). */
  readonly sandboxId: SandboxId;
  /** Milliseconds since the epoch. */
  readonly notAfter: number;
}

/** Reads a certificate that chains to the CA; undefined if it does not name a sandbox or is not for client authentication. */
export function sandboxCertificate(certificate: X509Certificate | undefined, names: Names): SandboxCertificate | undefined {
  if (certificate === undefined || !hasKeyUsage(certificate, clientAuth)) return undefined;
  const subject = subjectOf(certificate, names);
  if (subject?.kind !== 'sandbox') return undefined;
  const commonName: unknown = certificate.toLegacyObject().subject.CN;
  return {
    thumbprint: certificate.fingerprint256.replaceAll(':', '').toLowerCase(),
    commonName: typeof commonName === 'string' ? commonName : '',
    sandboxId: subject.id,
    notAfter: validityOf(certificate).to.getTime(),
  };
}

export const callerKey = createContextKey<Caller | undefined>(undefined, { description: 'the connection of the call' });
/** SHA-256 of the bearer token, hex, after the token was accepted for the method. */
export const tokenHashKey = createContextKey<string>('', { description: 'the hash of the bearer token' });
const identityKey = createContextKey<Identity | undefined>(undefined, { description: "the caller's row in the registry" });

/** @throws {DroverError} internal for a request without a connection, which is a programming error */
export function callerOf(values: ContextValues): Caller {
  const caller = values.get(callerKey);
  if (caller === undefined) throw new DroverError('internal', 'a call came without its connection');
  return caller;
}

/** Passes the caller's row to the handler (I-20). @throws {DroverError} internal for an absent row, or one without thumbprint or sandbox id */
export function attachIdentity(values: ContextValues, identity: Identity | undefined): void {
  if (identity === undefined || identity.thumbprint === '' || identity.sandboxId.length === 0) {
    throw new DroverError('internal', 'an absent identity cannot be attached to a call');
  }
  values.set(identityKey, identity);
}

/** The caller's row; undefined if the method does not require one (I-20). */
export function identityOf(values: ContextValues): Identity | undefined {
  return values.get(identityKey);
}
