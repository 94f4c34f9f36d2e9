import type { X509Certificate } from 'node:crypto';
import { createContextKey, type ContextValues } from '@connectrpc/connect';
import { DroverError, type HostId, type SandboxId } from '@drover/foundation';
import { clientAuth, hasKeyUsage, subjectOf, validityOf, type Names } from '@drover/pki';
import type { Identity } from '../model/index.ts';

/** What a connection came with: where from, as its host says, and who it showed to be, which TLS has verified. */
export interface Caller {
  readonly hostId: HostId;
  /** The host's end of the network that it came from, the sandbox that this network belongs to, and its address there. */
  readonly interface: string;
  readonly networkOf: SandboxId;
  readonly peerAddress: string;
  /** Undefined for a certificate that is no sandbox's. */
  readonly certificate: SandboxCertificate | undefined;
}

export interface SandboxCertificate {
  /** SHA-256 of the DER, lower-case hex. */
  readonly thumbprint: string;
  /** Empty when there is none, or several. */
  readonly commonName: string;
  /** Of its one URI SAN (I-14). */
  readonly sandboxId: SandboxId;
  /** Milliseconds since the epoch. */
  readonly notAfter: number;
}

/** Reads a certificate that chains to the CA; undefined when it speaks for no sandbox, or not as a client. */
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
/** SHA-256 of the bearer token, hex: of a token that was found good for the method. */
export const tokenHashKey = createContextKey<string>('', { description: 'the hash of the bearer token' });
const identityKey = createContextKey<Identity | undefined>(undefined, { description: "the caller's row in the registry" });

/** @throws {DroverError} internal: every request has one */
export function callerOf(values: ContextValues): Caller {
  const caller = values.get(callerKey);
  if (caller === undefined) throw new DroverError('internal', 'a call came without its connection');
  return caller;
}

/** Gives the handler its caller's row (I-20). @throws {DroverError} internal for an absent one, or one that lacks what names it */
export function attachIdentity(values: ContextValues, identity: Identity | undefined): void {
  if (identity === undefined || identity.thumbprint === '' || identity.sandboxId.length === 0) {
    throw new DroverError('internal', 'an absent identity cannot be attached to a call');
  }
  values.set(identityKey, identity);
}

/** The caller's row; undefined when the method demands none (I-20). */
export function identityOf(values: ContextValues): Identity | undefined {
  return values.get(identityKey);
}
