import type { SecureContextOptions } from 'node:tls';
import { ServerCredentials } from '@grpc/grpc-js';

/** PEM. `certificatePem`: leaf first. */
export interface ServerIdentity {
  readonly certificatePem: string;
  readonly keyPem: string;
}

interface LinkIdentity extends ServerIdentity {
  readonly caPem: string;
  /** 48 bytes; the same on every replica and after every restart, so that hosts resume their TLS sessions (L-12). */
  readonly ticketKeys?: Buffer;
}

/** TLS 1.3 with a client certificate of our CA (L-5). `rotate` takes effect for new connections; open ones are left alone. */
export class LinkServerCredentials extends ServerCredentials {
  constructor(identity: LinkIdentity) {
    // The server holds the rules of the handshake (requestCert, …); the context holds the credentials, which can rotate.
    super({ requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3', ...contextOf(identity) }, contextOf(identity));
  }

  rotate(identity: LinkIdentity): void {
    this.updateSecureContextOptions(contextOf(identity));
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

function contextOf(identity: LinkIdentity): SecureContextOptions {
  return {
    minVersion: 'TLSv1.3',
    ca: identity.caPem,
    cert: identity.certificatePem,
    key: identity.keyPem,
    // Reject the tickets of other listeners of this process.
    sessionIdContext: 'drover-link',
    ...(identity.ticketKeys === undefined ? {} : { ticketKeys: identity.ticketKeys }),
  };
}
