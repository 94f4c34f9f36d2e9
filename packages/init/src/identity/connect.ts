import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { connect, type PeerCertificate, type TLSSocket } from 'node:tls';
import { DroverError } from '@drover/foundation';
import { earlyConnectionMs } from '../limits.ts';
import { uriNames, type ServerIdentity } from '../server/index.ts';

/** The control plane's sandbox-facing listener, and the names and keys of both ends. */
export interface ControlPlaneAddress {
  readonly control: { readonly host: string; readonly port: number };
  /** URI SAN that the server must have. */
  readonly controlPlaneUri: string;
  readonly identity: ServerIdentity;
  /** Opens the transport; undefined: TCP. */
  readonly transport: (() => Duplex) | undefined;
}

/** id-kp-serverAuth, RFC 5280 section 4.2.1.12. */
const serverAuth = '1.3.6.1.5.5.7.3.1';

/** Connects, and authenticates the control plane. @throws {DroverError} ca-mismatch; the error of the connection */
export async function connectToControlPlane(
  { control: { host, port }, controlPlaneUri, identity, transport }: ControlPlaneAddress,
  signal: AbortSignal,
): Promise<TLSSocket> {
  const socket = connect({
    ...(transport === undefined ? { host, port } : { socket: transport() }),
    ca: identity.caPem,
    cert: identity.certificatePem,
    key: identity.keyPem,
    minVersion: 'TLSv1.3',
    ALPNProtocols: ['http/1.1'],
    rejectUnauthorized: true,
    checkServerIdentity: (_name, peer) => mismatch(peer, controlPlaneUri),
  });
  // Later errors show in the call.
  socket.on('error', () => undefined);
  try {
    await once(socket, 'secureConnect', { signal });
    return socket;
  } catch (error) {
    socket.destroy();
    if (socket.authorizationError) {
      throw new DroverError('ca-mismatch', `the server at ${host}:${port} is not the control plane: ${(error as Error).message}`, {
        hint: "find out which program listens there: it must be the sandbox's host",
        cause: error,
      });
    }
    throw error;
  }
}

/** Why a server with a certificate of the CA is not the control plane; undefined when it is. */
function mismatch(peer: PeerCertificate, controlPlaneUri: string): Error | undefined {
  if (!peer.ext_key_usage?.includes(serverAuth)) return new Error('the certificate is not for server authentication');
  const uris = uriNames(peer.subjectaltname ?? '');
  return uris.length === 1 && uris[0] === controlPlaneUri ? undefined : new Error('the certificate has another name');
}

/**
 * A connection that is opened before it is needed. A starting sandbox is asked to register as soon as the control plane reaches it, so that both
 * handshakes run concurrently. It ends after `earlyConnectionMs` unless it is taken. A failure to connect is not reported.
 */
export class EarlyConnection {
  readonly #ending = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #socket: Promise<TLSSocket | undefined>;

  constructor(address: ControlPlaneAddress) {
    this.#socket = connectToControlPlane(address, this.#ending.signal).catch(() => undefined);
    this.#timer = setTimeout(() => this.end(), earlyConnectionMs);
    this.#timer.unref();
  }

  /** Returns the connection, once, when it is open; undefined when it failed or has ended. */
  async take(): Promise<TLSSocket | undefined> {
    const socket = await this.#socket;
    clearTimeout(this.#timer);
    return socket?.destroyed === true || socket?.readableEnded === true ? undefined : socket;
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#ending.abort();
    void this.#socket.then((socket) => socket?.destroy());
  }
}
