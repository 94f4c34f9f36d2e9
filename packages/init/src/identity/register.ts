import { setTimeout as sleep } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createTransport } from '@connectrpc/connect/protocol-grpc';
import { createNodeHttpClient } from '@connectrpc/connect-node';
import { Backoff, DroverError, hasCode, type ErrorCode } from '@drover/foundation';
import { control } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { maxMessageBytes, maxRegisterBackoffMs, registerBackoffMs, registerMs, registerTryMs } from '../limits.ts';
import { connectToControlPlane, type ControlPlaneAddress } from './connect.ts';

export interface Registration extends ControlPlaneAddress {
  readonly project: string;
  readonly name: string;
  readonly bootstrapToken: string;
  /** A connection that stands already, for the first try; undefined: there is none. */
  readonly early: TLSSocket | undefined;
}

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
 * Calls Register on the control plane's sandbox-facing listener (I-13), over a connection for it alone. Tried again, with backoff, while the
 * connection cannot be had or breaks; an answer is final.
 * @throws {DroverError} permission-denied and the other answers, ca-mismatch when somebody else answers, control-plane-unreachable
 */
export async function register(registration: Registration): Promise<void> {
  const signal = AbortSignal.timeout(registerMs);
  const backoff = new Backoff({ baseMs: registerBackoffMs, capMs: maxRegisterBackoffMs });
  for (let { early } = registration; ; early = undefined) {
    try {
      await tryRegister({ ...registration, early }, AbortSignal.any([signal, AbortSignal.timeout(registerTryMs)]));
      return;
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

async function tryRegister(registration: Registration, signal: AbortSignal): Promise<void> {
  const socket = registration.early ?? (await connectToControlPlane(registration, signal));
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
    // The access token of the answer is for other methods; init calls none.
    await createClient(control.ControlService, transport).register(
      { project, name },
      { signal, headers: { authorization: `Bearer ${bootstrapToken}` } },
    );
  } finally {
    sessions.abort();
    socket.destroy();
  }
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
