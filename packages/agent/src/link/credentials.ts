import type { Socket } from 'node:net';
import { connect, createSecureContext, type SecureContext } from 'node:tls';
import { CallCredentials, ChannelCredentials } from '@grpc/grpc-js';
import type { CredentialsStore, HostIdentity } from './identity.ts';
import { controlPlaneIdentityError } from './trust.ts';

type SecureConnector = ReturnType<ChannelCredentials['_createSecureConnector']>;

/**
 * The host's side of mutual TLS 1.3 (L-5). Each new connection takes the newest certificate (L-2) and resumes the session of
 * the last one where the server still knows it (L-12).
 */
export class HostChannelCredentials extends ChannelCredentials {
  readonly #store: CredentialsStore;
  #context: SecureContext | undefined;
  #contextOf: HostIdentity | undefined;
  #session: Buffer | undefined;

  constructor(store: CredentialsStore) {
    super();
    this.#store = store;
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(): SecureConnector {
    const calls = CallCredentials.createEmpty();
    return {
      connect: (socket) => this.#connect(socket),
      waitForReady: () => Promise.resolve(),
      getCallCredentials: () => calls,
      destroy: () => undefined,
    };
  }

  #secureContext(): SecureContext {
    const identity = this.#store.current;
    if (this.#context === undefined || this.#contextOf !== identity) {
      this.#context = createSecureContext({
        minVersion: 'TLSv1.3',
        ca: identity.caPem,
        key: identity.keyPem,
        cert: identity.certificatePem,
      });
      this.#contextOf = identity;
      // A session speaks for the certificate that it was made with.
      this.#session = undefined;
    }
    return this.#context;
  }

  async #connect(socket: Socket): Promise<{ socket: Socket; secure: boolean }> {
    const secureContext = this.#secureContext();
    const { trustDomain } = this.#store.current;
    return await new Promise((resolve, reject) => {
      const secured = connect(
        {
          socket,
          secureContext,
          ALPNProtocols: ['h2'],
          ...(this.#session === undefined ? {} : { session: this.#session }),
          checkServerIdentity: (_name, certificate) => controlPlaneIdentityError(certificate, trustDomain),
        },
        () => {
          secured.removeListener('error', reject);
          resolve({ socket: secured, secure: true });
        },
      );
      secured.once('error', reject);
      secured.on('session', (session: Buffer) => {
        if (this.#context === secureContext) this.#session = session;
      });
    });
  }
}
