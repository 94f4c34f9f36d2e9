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
    // What decides the handshake (requestCert, …) stands with the server; what can rotate, in the context.
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
    // Tickets of another listener of this process must not be good here.
    sessionIdContext: 'drover-link',
    ...(identity.ticketKeys === undefined ? {} : { ticketKeys: identity.ticketKeys }),
  };
}
