import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type PeerCertificate, type TLSSocket } from 'node:tls';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createTransport } from '@connectrpc/connect/protocol-grpc';
import { createNodeHttpClient } from '@connectrpc/connect-node';
import { Backoff, DroverError, hasCode, type ErrorCode } from '@drover/foundation';
import { control } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { maxMessageBytes, maxRegisterBackoffMs, registerBackoffMs, registerMs, registerTryMs } from '../limits.ts';
import { uriNames, type ServerIdentity } from '../server/tls.ts';

export interface Registration {
  readonly control: { readonly host: string; readonly port: number };
  /** URI SAN of the one server that is asked. */
  readonly controlPlaneUri: string;
  readonly identity: ServerIdentity;
  readonly project: string;
  readonly name: string;
  readonly bootstrapToken: string;
}

/** id-kp-serverAuth, RFC 5280 section 4.2.1.12. */
const serverAuth = '1.3.6.1.5.5.7.3.1';

/** Connect's codes for an answer that will not change; anything else is tried again. */
const final: Partial<Record<Code, ErrorCode>> = {
  [Code.PermissionDenied]: 'permission-denied',
  [Code.Unauthenticated]: 'unauthenticated',
  [Code.InvalidArgument]: 'invalid-argument',
  [Code.FailedPrecondition]: 'failed-precondition',
  [Code.ResourceExhausted]: 'queue-full',
  [Code.Unimplemented]: 'unimplemented',
};

/**
 * Calls Register on the control plane's sandbox-facing listener (I-13), over a connection of its own. Tried again, with backoff, while the
 * connection cannot be had or breaks; an answer is final.
 * @throws {DroverError} permission-denied and the other answers, ca-mismatch when somebody else answers, control-plane-unreachable
 */
export async function register(registration: Registration): Promise<{ readonly accessToken: string }> {
  const signal = AbortSignal.timeout(registerMs);
  const backoff = new Backoff({ baseMs: registerBackoffMs, capMs: maxRegisterBackoffMs });
  for (;;) {
    try {
      return await tryRegister(registration, AbortSignal.any([signal, AbortSignal.timeout(registerTryMs)]));
    } catch (thrown) {
      const error = toDroverError(thrown, registration);
      if (!hasCode(error, 'control-plane-unreachable') || signal.aborted) throw error;
      try {
        await sleep(backoff.nextMs(), undefined, { signal });
      } catch {
        throw error;
      }
    }
  }
}

async function tryRegister(registration: Registration, signal: AbortSignal): Promise<{ readonly accessToken: string }> {
  const socket = await connectToControlPlane(registration, signal);
  const sessions = new ReadableSessionManager('https://control-plane', {}, { createConnection: () => socket });
  try {
    const transport = createTransport({
      baseUrl: 'https://control-plane',
      httpClient: createNodeHttpClient({ httpVersion: '2', sessionProvider: () => sessions }),
      useBinaryFormat: true,
      interceptors: [],
      acceptCompression: [],
      sendCompression: null,
      compressMinBytes: 0,
      readMaxBytes: maxMessageBytes,
      writeMaxBytes: maxMessageBytes,
    });
    const { project, name, bootstrapToken } = registration;
    return await createClient(control.ControlService, transport).register(
      { project, name },
      { signal, headers: { authorization: `Bearer ${bootstrapToken}` } },
    );
  } finally {
    sessions.abort();
    socket.destroy();
  }
}

/** A connection whose other end has proved to be the control plane. */
async function connectToControlPlane(
  { control: { host, port }, controlPlaneUri, identity }: Registration,
  signal: AbortSignal,
): Promise<TLSSocket> {
  const socket = connect({
    host,
    port,
    ca: identity.caPem,
    cert: identity.certificatePem,
    key: identity.keyPem,
    minVersion: 'TLSv1.3',
    ALPNProtocols: ['h2'],
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

function toDroverError(thrown: unknown, { control: { host, port } }: Registration): DroverError {
  if (thrown instanceof DroverError) return thrown;
  const code = thrown instanceof ConnectError ? final[thrown.code] : undefined;
  if (code !== undefined && thrown instanceof ConnectError) return new DroverError(code, thrown.rawMessage, { cause: thrown });
  const why = thrown instanceof ConnectError ? thrown.rawMessage : thrown instanceof Error ? thrown.message : String(thrown);
  return new DroverError('control-plane-unreachable', `the control plane cannot be reached at ${host}:${port}: ${why}`, {
    hint: "check the host's link to the control plane",
    cause: thrown,
  });
}
