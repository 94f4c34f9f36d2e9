import type { SandboxId } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import { defaultStopGraceMs, killGraceMs, maxStopGraceMs } from '@drover/spec';
import { killedExitCode, type Runtime, type RuntimeState } from '../runtimes/runtime.ts';
import type { SandboxRecord } from './record.ts';

/** Between SIGTERM and SIGKILL. Milliseconds. @param wanted 0 takes the default */
export function stopGraceMs(wanted: number): number {
  return Math.min(wanted || defaultStopGraceMs, maxStopGraceMs);
}

/**
 * How a run of a sandbox that has ended is reported.
 * @param state what the runtime found; undefined when nothing is left of it
 * @param why it was stopped on request, its host restarted while it ran, or it ended without either
 */
export function endOf(
  spec: sandbox.SandboxSpec,
  state: RuntimeState | undefined,
  why: 'stopped' | 'exited' | 'host-restarted',
): Pick<SandboxRecord, 'phase' | 'reason' | 'message' | 'exitCode' | 'exitSignal' | 'outOfMemory'> {
  const { exitCode = killedExitCode, exitSignal = '' } = state ?? {};
  if (state?.outOfMemory === true && why !== 'stopped') {
    // R-10: reported as what it is, not as an exit. A run that was stopped ended by the stop, whatever the kernel killed in it before.
    const limit = Number(spec.resources?.memoryBytes ?? 0n);
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
    // No status of the command is known: none is made up for a host that took the sandbox with it.
    return why === 'host-restarted'
      ? { ...ended, exitCode: undefined, exitSignal: '', phase: 'failed', reason: why, message: 'its host restarted while it ran' }
      : { ...ended, phase: 'stopped', reason: 'killed', message: 'its init was killed from outside the sandbox' };
  }
  const signal = exitSignal === '' ? '' : ` (${exitSignal})`;
  return { ...ended, phase: 'stopped', reason: 'exited', message: `the command ended with status ${exitCode}${signal}` };
}

/** The time that a sandbox has from SIGTERM to SIGKILL: the shortest that is asked for while it runs. */
export class StopGrace implements Disposable {
  readonly #over = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #endsAt = Number.POSITIVE_INFINITY;

  constructor(ms: number) {
    this.shorten(ms);
  }

  /** Aborts when it is over. */
  get signal(): AbortSignal {
    return this.#over.signal;
  }

  shorten(ms: number): void {
    if (ms <= killGraceMs) this.#over.abort();
    const endsAt = performance.now() + ms;
    if (endsAt >= this.#endsAt || this.#over.signal.aborted) return;
    this.#endsAt = endsAt;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#over.abort(), ms);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}

/** SIGTERM, then SIGKILL when the grace is over; resolves when the sandbox has ended. @param life the agent's: it leaves the rest to the next one */
export async function endWithin(runtime: Runtime, id: SandboxId, grace: StopGrace, life: AbortSignal): Promise<void> {
  if (!grace.signal.aborted) {
    // A frozen process cannot answer SIGTERM.
    if ((await runtime.inspect(id))?.phase === 'paused') await runtime.resume(id);
    await runtime.kill(id, 'SIGTERM');
    try {
      await runtime.waitExit(id, AbortSignal.any([life, grace.signal]));
      return;
    } catch {
      life.throwIfAborted();
    }
  }
  await runtime.kill(id, 'SIGKILL');
  await runtime.waitExit(id, life);
}
