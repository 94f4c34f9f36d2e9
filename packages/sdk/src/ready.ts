import type { Client } from '@connectrpc/connect';
import { DroverError, isErrorCode, startFailure } from '@drover/foundation';
import { desiredStates, sandboxStates, type api } from '@drover/protocol';
import type { Calls } from './calls.ts';
import type { EventsApi } from './events.ts';
import { planWaitMs } from './limits.ts';

export interface ReadyOptions {
  /** The generation that the call that requested the start returned; absent: the present one. */
  readonly generation?: bigint;
  /** Called each time the connection has broken, before the next attempt. */
  readonly onReconnect?: (error: Error) => void;
  readonly signal?: AbortSignal;
}

/**
 * Waits until a sandbox's init plan is done and its command has begun, also when the command has ended since. The stored state decides;
 * events only tell when to read it.
 * @param id a sandbox's id
 */
export async function waitReady(
  client: Client<typeof api.SandboxService>,
  events: EventsApi,
  calls: Calls,
  id: string,
  { generation, onReconnect, signal }: ReadyOptions,
): Promise<api.Sandbox> {
  const late = new AbortController();
  const waiting = new AbortController();
  const either = AbortSignal.any([late.signal, waiting.signal, ...(signal === undefined ? [] : [signal])]);
  let timed = false;
  try {
    const changes = events.watch({
      subject: id,
      kinds: ['sandbox', 'init'],
      fromStart: true,
      signal: either,
      ...(onReconnect !== undefined && { onReconnect }),
    });
    for await (const { type } of changes) {
      // A plan is decided at its end.
      if (type.startsWith('InitStep')) continue;
      const sandbox = await calls.ask((options) => client.getSandbox({ sandbox: id }, options), either);
      if (generation !== undefined) refuseOvertaken(sandbox, generation);
      if (hasBegun(sandbox)) return sandbox;
      if (sandboxStates.name(sandbox.state) !== 'running' || timed) continue;
      timed = true;
      void abortAfter(late, waiting.signal, calls);
    }
    throw new DroverError('control-plane-unreachable', `the events of sandbox ${id} ended before its command began`);
  } catch (error) {
    signal?.throwIfAborted();
    late.signal.throwIfAborted();
    throw error;
  } finally {
    waiting.abort();
  }
}

const over: ReadonlySet<string | undefined> = new Set(['failed', 'stopped', 'deleting', 'deleted']);

/**
 * Whether its init plan failed for good (I-30), so that its command never begins. A plan that only lost its session is run again; the
 * host reports a command that could not be started.
 */
export function planFailed({ state, reason, init }: api.Sandbox): boolean {
  const name = sandboxStates.name(state);
  // Deleted, it keeps its reason, and the view of its plan is gone.
  if (reason === 'init-failed' && (name === 'failed' || name === 'deleting' || name === 'deleted')) return true;
  if (init?.state !== 'failed' || init.reason === 'transport-error') return false;
  if (init.stepName === 'agent-ready') return init.reason !== 'spawn-failed';
  // The failure removes it (--rm), or a person has.
  return name === 'deleting' || name === 'deleted';
}

const overtakes: ReadonlyMap<string | undefined, string> = new Map([
  ['stopped', 'stopped'],
  ['paused', 'paused'],
  ['deleted', 'removed'],
]);

/** @throws {DroverError} conflict when a later request stopped, paused or removed the sandbox before its command began */
function refuseOvertaken({ name, desiredState, generation: now, init }: api.Sandbox, generation: bigint): void {
  const happened = overtakes.get(desiredStates.name(desiredState));
  if (now <= generation || init?.state === 'completed' || happened === undefined) return;
  throw new DroverError('conflict', `sandbox ${name} was ${happened} before its command began`, {
    hint: `drover events --subject ${name} shows what was asked for and when`,
  });
}

/** @throws {DroverError} when its command can never begin, with the sandbox's message */
function hasBegun(sandbox: api.Sandbox): boolean {
  const { init, exitCode, hostName, message, hint, name, reason } = sandbox;
  const state = sandboxStates.name(sandbox.state);
  const failed = planFailed(sandbox);
  if (!failed && !over.has(state)) return init?.state === 'completed';
  // The end of its init alone says nothing about its command.
  const never = failed || exitCode === undefined || (init?.state === 'failed' && init.reason !== 'transport-error');
  if (!never) return true;
  const unstarted = reason === 'start-failed' ? startFailure(exitCode, message) : undefined;
  if (unstarted !== undefined) throw unstarted;
  const place = hostName === '' ? '' : ` on host ${hostName}`;
  const why = message === '' ? `it is ${state ?? 'deleted'}` : message;
  throw new DroverError(isErrorCode(reason) ? reason : 'runtime-failed', `sandbox ${name} could not be started${place}: ${why}`, {
    ...(hint !== '' && { hint }),
  });
}

async function abortAfter(late: AbortController, signal: AbortSignal, { clock }: Calls): Promise<void> {
  try {
    await clock.sleep(planWaitMs, signal);
  } catch {
    // The plan was done in time.
    return;
  }
  const message = `the sandbox runs, and its init plan is not done after ${planWaitMs / 60_000} minutes`;
  late.abort(new DroverError('timed-out', message, { hint: 'look at its session with drover sandbox get, and at its host' }));
}
