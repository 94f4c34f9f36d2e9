import type { SandboxId } from '@drover/foundation';
import { killGraceMs } from '@drover/spec';
import type { SandboxSpec } from '@drover/spec/sandbox';
import { killedExitCode, type Backend, type SandboxState } from '../backends/index.ts';
import type { SandboxRecord } from './record.ts';

/**
 * How the end of a run is reported.
 * @param state as the backend found it; undefined: the sandbox does not exist any more
 * @param why the run was stopped on request, its host restarted meanwhile, or it ended without either
 */
export function endOf(
  spec: Pick<SandboxSpec, 'resources' | 'idleStopSeconds'>,
  state: SandboxState | undefined,
  why: 'stopped' | 'exited' | 'host-restarted',
): Pick<SandboxRecord, 'phase' | 'reason' | 'message' | 'exitCode' | 'exitSignal' | 'outOfMemory'> {
  const { exitCode = killedExitCode, exitSignal = '' } = state ?? {};
  if (state?.outOfMemory === true && why !== 'stopped') {
    // R-10: reported as out of memory, not as an exit. A run that was stopped ended by the stop, whatever the kernel killed in it earlier.
    const limit = spec.resources.memoryBytes;
    const message = `ended for want of memory${limit > 0 ? `: its limit is ${limit} bytes; give it more with --memory` : ''}`;
    return { phase: 'failed', reason: 'out-of-memory', message, exitCode, exitSignal, outOfMemory: true };
  }
  const ended = { exitCode, exitSignal, outOfMemory: false };
  if (state?.startFailure !== undefined) return { ...ended, phase: 'failed', reason: 'start-failed', message: state.startFailure };
  if (state?.idle === true) {
    return { ...ended, phase: 'stopped', reason: 'idle', message: `stopped: nothing happened in it for ${spec.idleStopSeconds} s` };
  }
  if (why === 'stopped') return { ...ended, phase: 'stopped', reason: why, message: '' };
  if (state === undefined || state.unrecorded === true) {
    // The status of the command is unknown; after a restart of the host none is made up.
    return why === 'host-restarted'
      ? { ...ended, exitCode: undefined, exitSignal: '', phase: 'failed', reason: why, message: 'its host restarted while it ran' }
      : { ...ended, phase: 'stopped', reason: 'killed', message: 'its init was killed from outside the sandbox' };
  }
  const signal = exitSignal === '' ? '' : ` (${exitSignal})`;
  return { ...ended, phase: 'stopped', reason: 'exited', message: `the command ended with status ${exitCode}${signal}` };
}

/** The time from SIGTERM to SIGKILL: the shortest of all stops that are requested while it runs. */
export class StopGrace implements Disposable {
  readonly #expiry = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #endsAt = Number.POSITIVE_INFINITY;

  constructor(ms: number) {
    this.shorten(ms);
  }

  /** Aborts when the grace has expired. */
  get signal(): AbortSignal {
    return this.#expiry.signal;
  }

  shorten(ms: number): void {
    if (ms <= killGraceMs) this.#expiry.abort();
    const endsAt = performance.now() + ms;
    if (endsAt >= this.#endsAt || this.#expiry.signal.aborted) return;
    this.#endsAt = endsAt;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#expiry.abort(), ms);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}

/** Sends SIGTERM, and SIGKILL when the grace expires; resolves when the sandbox has ended. @param life the agent's: the next agent does the rest */
export async function endWithin(backend: Backend, id: SandboxId, grace: StopGrace, life: AbortSignal): Promise<void> {
  if (!grace.signal.aborted) {
    // A frozen process cannot handle SIGTERM.
    if ((await backend.inspect(id))?.phase === 'paused') await backend.resume(id);
    await backend.kill(id, 'SIGTERM');
    try {
      await backend.waitExit(id, AbortSignal.any([life, grace.signal]));
      return;
    } catch {
      life.throwIfAborted();
    }
  }
  await backend.kill(id, 'SIGKILL');
  await backend.waitExit(id, life);
}
