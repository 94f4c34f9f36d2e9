import { request as httpRequest, type IncomingMessage } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { Backoff, clip, DroverError, hasCode, type ErrorCode } from '@drover/foundation';
import type { control } from '@drover/protocol';
import { maxSessionMessageBytes } from '@drover/spec';
import { maxRegisterBackoffMs, registerBackoffMs, registerMs, registerTryMs } from '../limits.ts';
import { connectToControlPlane, type ControlPlaneAddress } from './connect.ts';

/** ControlService.Register by the Connect protocol: a unary call is a POST of JSON (connectrpc.com/docs/protocol). */
const registerPath = '/drover.control.v1.ControlService/Register';

export interface Registration extends ControlPlaneAddress {
  readonly project: string;
  readonly name: string;
  readonly bootstrapToken: string;
  /** An open connection for the first try, if there is one. */
  readonly early: TLSSocket | undefined;
}

/** Connect's codes of final errors; every other error is retried. */
const final: Readonly<Partial<Record<string, ErrorCode>>> = {
  permission_denied: 'permission-denied',
  unauthenticated: 'unauthenticated',
  invalid_argument: 'invalid-argument',
  failed_precondition: 'failed-precondition',
  resource_exhausted: 'queue-full',
  unimplemented: 'unimplemented',
};

/**
 * Calls Register on the control plane's sandbox-facing listener (I-13), over a connection of its own. Retries with backoff while the connection
 * fails; a response is final.
 * @throws {DroverError} permission-denied and other errors of the response, ca-mismatch, control-plane-unreachable
 */
export async function register(registration: Registration): Promise<void> {
  const deadline = performance.now() + registerMs;
  const backoff = new Backoff({ baseMs: registerBackoffMs, capMs: maxRegisterBackoffMs });
  for (let { early } = registration; ; early = undefined) {
    try {
      const left = deadline - performance.now();
      await within(Math.min(registerTryMs, left), (signal) => tryRegister({ ...registration, early }, signal));
      return;
    } catch (thrown) {
      const error = toDroverError(thrown, registration);
      const waitMs = backoff.nextMs();
      if (!hasCode(error, 'control-plane-unreachable') || performance.now() + waitMs >= deadline) throw error;
      await sleep(waitMs);
    }
  }
}

/** Unlike AbortSignal.timeout, it leaves no timer. */
async function within(ms: number, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(new Error(`no answer within ${Math.round(ms)} ms`)), ms);
  try {
    await work(late.signal);
  } finally {
    clearTimeout(timer);
  }
}

async function tryRegister(registration: Registration, signal: AbortSignal): Promise<void> {
  const { project, name, bootstrapToken, early } = registration;
  const socket = early ?? (await connectToControlPlane(registration, signal));
  try {
    const { status, body } = await post(socket, { project, name }, bootstrapToken, signal);
    // The access token in the response is for other methods, which init does not call.
    if (status !== 200) throw refusal(status, body);
  } finally {
    socket.destroy();
  }
}

/** One request and its whole response. Plain HTTP/1.1: a client library for this call would cost each start as much as its TLS. */
async function post(
  socket: TLSSocket,
  message: MessageInitShape<typeof control.RegisterRequestSchema>,
  token: string,
  signal: AbortSignal,
): Promise<{ readonly status: number; readonly body: string }> {
  const body = JSON.stringify(message);
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    const request = httpRequest({
      createConnection: () => socket,
      method: 'POST',
      path: registerPath,
      headers: {
        host: 'control-plane',
        authorization: `Bearer ${token}`,
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(body),
        connection: 'close',
      },
      signal,
    });
    request.on('response', resolve);
    request.on('error', reject);
    request.end(body);
  });
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of answer as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > maxSessionMessageBytes) throw new Error(`the answer has more than ${maxSessionMessageBytes} bytes`);
    parts.push(part);
  }
  return { status: answer.statusCode ?? 0, body: Buffer.concat(parts).toString() };
}

/** A final error by its code; any other as an error that is retried. */
function refusal(status: number, body: string): Error {
  let said: { readonly code?: unknown; readonly message?: unknown } = {};
  try {
    said = (JSON.parse(body) ?? {}) as typeof said;
  } catch {
    // Not a response of Connect: it comes from a proxy in between.
  }
  const code = typeof said.code === 'string' ? final[said.code] : undefined;
  const message = typeof said.message === 'string' ? clip(said.message) : `it answered with status ${status}`;
  return code === undefined ? new Error(message) : new DroverError(code, message);
}

function toDroverError(thrown: unknown, { control: { host, port } }: Registration): DroverError {
  if (thrown instanceof DroverError) return thrown;
  const why = thrown instanceof Error ? thrown.message : String(thrown);
  return new DroverError('control-plane-unreachable', `the control plane cannot be reached at ${host}:${port}: ${why}`, {
    hint: "check the host's link to the control plane",
    cause: thrown,
  });
}
