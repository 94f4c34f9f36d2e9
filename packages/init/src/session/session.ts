import { DroverError, version } from '@drover/foundation';
import { errorToWire, init } from '@drover/protocol';
import { publicError } from '@drover/protocol/rpc';
import { parseSignal } from '@drover/spec';
import type { Identity } from '../identity/index.ts';
import { maxSessionRequests } from '../limits.ts';
import type { Call, Reply } from '../server/index.ts';
import type { Sandbox } from '../sandbox.ts';
import { exitStatus } from './exec.ts';
import { runStep, type Answer, type Payload } from './step.ts';

type SessionCall = Call<init.SessionRequest, Reply<'session'>>;

/**
 * The control plane's stream. Requests are served concurrently and answered by their id, so that a long one delays no other. The end of the main
 * process is sent and ends the stream.
 * @param worked called after each request but a ping
 * @param unexpected called with an error of an unknown kind, and the id that the control plane receives for it
 */
export async function session(
  call: SessionCall,
  sandbox: Sandbox,
  identity: Identity,
  worked: () => void,
  unexpected: (id: string, error: unknown) => void,
): Promise<void> {
  const answering = (async () => {
    const running = new Set<Promise<void>>();
    for await (const request of call.requests) {
      if (running.size >= maxSessionRequests) {
        await refuse(
          call,
          request.id,
          new DroverError('no-room', `${maxSessionRequests} requests of the session are being answered already`),
        );
        continue;
      }
      const answered = serve(request, call, sandbox, identity, unexpected).finally(() => {
        running.delete(answered);
        if (request.payload.case !== 'ping') worked();
      });
      // A response that cannot be sent means that the stream has ended, which ends the loop as well.
      answered.catch(() => undefined);
      running.add(answered);
    }
    await Promise.all(running);
  })();
  const telling = (async () => {
    const exit = await sandbox.ended(call.signal);
    if (exit !== undefined) {
      await call.send({ id: 0n, payload: { case: 'mainExited', value: { exit: exitStatus(exit) } } });
    }
  })();
  telling.catch(() => undefined);
  await Promise.race([answering, telling]);
}

async function serve(
  { id, payload }: init.SessionRequest,
  call: SessionCall,
  sandbox: Sandbox,
  identity: Identity,
  unexpected: (id: string, error: unknown) => void,
): Promise<void> {
  const answer: Answer = async (answered) => await call.send({ id, payload: answered });
  try {
    if (payload.case === 'runStep') await runStep(payload.value, sandbox, answer, call.signal);
    else await answer(await handle(payload, sandbox, identity));
  } catch (thrown) {
    call.signal.throwIfAborted();
    await refuse(
      call,
      id,
      publicError(thrown, (errorId) => unexpected(errorId, thrown)),
    );
  }
}

async function refuse(call: SessionCall, id: bigint, error: DroverError): Promise<void> {
  const { code, message, hint } = errorToWire(error);
  await call.send({ id, error: { code, message, hint } });
}

async function handle(payload: init.SessionRequest['payload'], sandbox: Sandbox, identity: Identity): Promise<Payload> {
  switch (payload.case) {
    case 'hello':
      return {
        case: 'helloAck',
        value: {
          sandboxId: sandbox.config.sandboxId,
          initVersion: version,
          bootId: sandbox.bootId,
          main: mainState(sandbox),
          stepsDone: [...sandbox.steps.done, ...(sandbox.main === undefined ? [] : ['agent-ready'])],
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
    case 'registerRequired':
      await identity.register(payload.value.bootstrapToken);
      return { case: 'registerDone', value: {} };
    case 'installCertificate':
      identity.install(payload.value.certificatePem);
      return { case: 'certificateInstalled', value: {} };
    // I-33: an unknown request is answered with an error; it does not end the session.
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
