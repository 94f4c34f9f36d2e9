import type { Socket } from 'node:net';
import { connect, createSecureContext, type SecureContext } from 'node:tls';
import { CallCredentials, ChannelCredentials } from '@grpc/grpc-js';
import type { CredentialsStore, HostIdentity } from './identity.ts';
import { controlPlaneIdentityError } from './trust.ts';

type SecureConnector = ReturnType<ChannelCredentials['_createSecureConnector']>;

/**
 * The host's side of mutual TLS 1.3 (L-5). Each new connection uses the newest certificate (L-2) and resumes the last session if the server still
 * knows it (L-12).
 */
export class HostTls {
  readonly #store: CredentialsStore;
  #context: SecureContext | undefined;
  #contextOf: HostIdentity | undefined;
  #session: Buffer | undefined;
  #resumed = false;
  #failure: Error | undefined;

  constructor(store: CredentialsStore) {
    this.#store = store;
  }

  /** The last handshake resumed a session (RFC 8446, section 2.2): no certificates, no signatures. */
  get resumed(): boolean {
    return this.#resumed;
  }

  /** Why a connection broke, in its handshake or later, since the last call of this. gRPC reports only that it did. */
  takeFailure(): Error | undefined {
    const failure = this.#failure;
    this.#failure = undefined;
    return failure;
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
      // A session belongs to the certificate that it was made with.
      this.#session = undefined;
    }
    return this.#context;
  }

  async secure(socket: Socket): Promise<Socket> {
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
          this.#resumed = secured.isSessionReused();
          resolve(secured);
        },
      );
      // Stays for the socket's life: with TLS 1.3 a server refuses a client's certificate after the handshake.
      secured.on('error', (error) => {
        this.#failure = error;
        reject(error);
      });
      secured.once('close', () => reject(new Error('the connection was closed')));
      secured.on('session', (session: Buffer) => {
        if (this.#context === secureContext) this.#session = session;
      });
    });
  }
}

/**
 * The credentials of one gRPC channel. Closing them closes its connections and refuses others: a closed grpc-js channel that
 * had a failed attempt dials once more, and such a connection would have no owner.
 */
export class HostChannelCredentials extends ChannelCredentials {
  readonly #tls: HostTls;
  readonly #sockets = new Set<Socket>();
  #closed = false;

  constructor(tls: HostTls) {
    super();
    this.#tls = tls;
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

  async #connect(socket: Socket): Promise<{ socket: Socket; secure: boolean }> {
    if (this.#closed) {
      socket.destroy();
      throw new Error('the link was closed');
    }
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
    return { socket: await this.#tls.secure(socket), secure: true };
  }

  close(): void {
    this.#closed = true;
    for (const socket of this.#sockets) socket.destroy();
  }
}
