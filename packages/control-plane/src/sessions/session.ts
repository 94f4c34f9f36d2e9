import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { DroverError, isErrorCode, version, type SandboxId } from '@drover/foundation';
import { init } from '@drover/protocol';
import type { Connection } from './connect.ts';

/** How a session stream ended. */
export interface SessionEnd {
  /** The main process ended, and the sandbox with it; otherwise the stream broke. */
  readonly mainExited: boolean;
  readonly reason: string;
}

export interface SessionEvents {
  /** HelloAck came, from this sandbox. */
  greeted(ack: init.HelloAck): void;
  /** Why the main process could not be started. */
  startFailed(error: DroverError): void;
}

/**
 * Runs the Session stream of one connection until it ends. Hello and AgentReady go out together, without waiting for the answer between:
 * AgentReady is idempotent (I-32), and a round trip less is what the user waits less for the first byte.
 * @throws {DroverError} protocol-violation when another sandbox answers; ConnectError when the stream breaks
 */
export async function runSession(id: SandboxId, connection: Connection, signal: AbortSignal, events: SessionEvents): Promise<SessionEnd> {
  const over = new AbortController();
  const all = AbortSignal.any([signal, over.signal, connection.lost]);
  try {
    for await (const response of connection.client.session(requests(all), { signal: all })) {
      const { payload } = response;
      if (payload.case === 'mainExited')
        return { mainExited: true, reason: `the main process exited with ${payload.value.exit?.code ?? '?'}` };
      if (payload.case === 'helloAck') {
        if (payload.value.sandboxId !== id) {
          throw new DroverError('protocol-violation', `sandbox ${payload.value.sandboxId.slice(0, 40)} answered instead of ${id}`);
        }
        events.greeted(payload.value);
      }
      if (response.error !== undefined && response.id === agentReadyId) {
        const { code, message } = response.error;
        events.startFailed(new DroverError(isErrorCode(code) ? code : 'internal', message));
      }
      // I-33: what is not known is nobody's answer and ends nothing.
    }
    return { mainExited: false, reason: 'the sandbox ended the session' };
  } finally {
    over.abort();
  }
}

const agentReadyId = 2n;

async function* requests(signal: AbortSignal): AsyncGenerator<init.SessionRequest, void, undefined> {
  const hello = create(init.HelloSchema, { controlPlaneVersion: version, sentAt: timestampFromMs(Date.now()) });
  yield create(init.SessionRequestSchema, { id: 1n, payload: { case: 'hello', value: hello } });
  yield create(init.SessionRequestSchema, { id: agentReadyId, payload: { case: 'agentReady', value: create(init.AgentReadySchema) } });
  if (signal.aborted) return;
  // The stream stays open for the sandbox's life: its end is how either side learns of the other's.
  await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
