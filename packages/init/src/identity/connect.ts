import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { connect, type PeerCertificate, type TLSSocket } from 'node:tls';
import { DroverError } from '@drover/foundation';
import { earlyConnectionMs } from '../limits.ts';
import { uriNames, type ServerIdentity } from '../server/index.ts';

/** Where the control plane's sandbox-facing listener is, and who says so to whom. */
export interface ControlPlaneAddress {
  readonly control: { readonly host: string; readonly port: number };
  /** URI SAN of the one server that is asked. */
  readonly controlPlaneUri: string;
  readonly identity: ServerIdentity;
  /** What the connection goes over; undefined: TCP. */
  readonly transport: (() => Duplex) | undefined;
}

/** id-kp-serverAuth, RFC 5280 section 4.2.1.12. */
const serverAuth = '1.3.6.1.5.5.7.3.1';

/** A connection whose other end has proved to be the control plane. @throws {DroverError} ca-mismatch; whatever kept it from being made */
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
  // Whatever comes later shows in the call.
  socket.on('error', () => undefined);
  try {
    await once(socket, 'secureConnect', { signal });
    return socket;
  } catch (error) {
    socket.destroy();
    if (socket.authorizationError) {
      throw new DroverError('ca-mismatch', `what answers at ${host}:${port} is not the control plane: ${(error as Error).message}`, {
        hint: "look for who else listens there: the sandbox's own host must",
        cause: error,
      });
    }
    throw error;
  }
}

/** Why a server that chains to the CA is not the control plane all the same; undefined when it is. */
function mismatch(peer: PeerCertificate, controlPlaneUri: string): Error | undefined {
  if (!peer.ext_key_usage?.includes(serverAuth)) return new Error('the certificate is not for server authentication');
  const uris = uriNames(peer.subjectaltname ?? '');
  return uris.length === 1 && uris[0] === controlPlaneUri ? undefined : new Error('the certificate names someone else');
}

/**
 * A connection made before it is asked for. A sandbox that starts is told to register as soon as it is reached, and both handshakes then run
 * side by side. It ends after `earlyConnectionMs` when it was not taken; that there is none is no failure.
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

  /** The connection, once, as soon as it stands; undefined when there is none, or none any more. */
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
