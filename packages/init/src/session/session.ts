import { DroverError, version } from '@drover/foundation';
import { init } from '@drover/protocol';
import type { Call, Reply } from '../server/call.ts';
import type { Sandbox } from '../sandbox.ts';
import { exitStatus, parseSignal } from './exec.ts';

type Response = Reply<'session'>;
type Payload = NonNullable<Response['payload']>;

/** The control plane's stream: requests are answered by id, in order; the end of the main process is told and ends the stream. */
export async function session(call: Call<init.SessionRequest, Response>, sandbox: Sandbox): Promise<void> {
  const answering = (async () => {
    for await (const request of call.requests) {
      // I-33: an unknown payload is answered as such and ends nothing.
      await call.send(await answer(request, sandbox));
    }
  })();
  const telling = (async () => {
    const exit = await sandbox.ended(call.signal);
    if (exit !== undefined) {
      await call.send(respond(0n, { case: 'mainExited', value: { exit: exitStatus(exit) } }));
    }
  })();
  telling.catch(() => undefined);
  await Promise.race([answering, telling]);
}

async function answer(request: init.SessionRequest, sandbox: Sandbox): Promise<Response> {
  try {
    return respond(request.id, await handle(request.payload, sandbox));
  } catch (thrown) {
    const error = DroverError.from(thrown);
    return {
      id: request.id,
      error: { code: error.code, message: error.message },
    };
  }
}

async function handle(payload: init.SessionRequest['payload'], sandbox: Sandbox): Promise<Payload> {
  switch (payload.case) {
    case 'hello':
      return {
        case: 'helloAck',
        value: {
          sandboxId: sandbox.config.sandboxId,
          initVersion: version,
          bootId: sandbox.bootId,
          main: mainState(sandbox),
          stepsDone: sandbox.main === undefined ? [] : ['agent-ready'],
        },
      };
    case 'agentReady': {
      const alreadyStarted = await sandbox.startMain();
      return { case: 'agentReadyDone', value: { main: mainState(sandbox), alreadyStarted } };
    }
    case 'shutdown':
      sandbox.stop(payload.value.graceMs === 0 ? undefined : payload.value.graceMs);
      return { case: 'shutdownStarted', value: {} };
    case 'signalMain':
      sandbox.signalMain(parseSignal(payload.value.signal));
      return { case: 'signalMainDone', value: {} };
    case 'ping':
      return { case: 'pong', value: {} };
    default:
      throw new DroverError('unimplemented', 'this init does not know the request');
  }
}

function mainState(sandbox: Sandbox): { phase: init.MainState_Phase; pid?: number; exit?: ReturnType<typeof exitStatus> } {
  const { main } = sandbox;
  if (main === undefined) return { phase: init.MainState_Phase.NOT_STARTED };
  if (main.exit === undefined) return { phase: init.MainState_Phase.RUNNING, pid: main.spawned.pid };
  return { phase: init.MainState_Phase.EXITED, pid: main.spawned.pid, exit: exitStatus(main.exit) };
}

function respond(id: bigint, payload: Payload): Response {
  return { id, payload };
}
