import { isSandboxId, type SandboxId } from '@drover/foundation';
import { crashDelayBaseMs, crashDelayCapMs, crashTrialCapMs, crashTrialMs, crashesBeforeTrials } from '../../limits.ts';

/** The record in the data directory by which the next server distinguishes a crash loop from a restart. */
export interface CrashRecord {
  /** The server has not closed. */
  readonly running: boolean;
  /** It has run for `crashSettledMs`: its end does not count as a failed start. */
  readonly settled: boolean;
  /** Consecutive earlier servers that ended without closing, before they had settled. */
  readonly crashes: number;
  /** The sandboxes on trial. No other sandbox was dialled since the last trial passed. */
  readonly trial: readonly SandboxId[];
  /** The number of crashes that the trials attribute to each sandbox. */
  readonly suspects: Readonly<Record<SandboxId, number>>;
}

export const noCrash: CrashRecord = { running: false, settled: false, crashes: 0, trial: [], suspects: {} };

/** The state in which a server begins, derived from the record of the previous one. */
export interface Beginning {
  readonly crashes: number;
  readonly suspects: ReadonlyMap<SandboxId, number>;
  /** Every sandbox is dialled on trial, since any of them may have caused the crashes. */
  readonly allOnTrial: boolean;
}

/** Signals from an operator, a service manager, or the kernel when memory is short. A peer cannot cause them. */
const foreignSignals: ReadonlySet<string> = new Set(['SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT']);

/**
 * A single crash has no consequence: a healthy server may have been killed. From `crashesBeforeTrials` consecutive crashes on, sandboxes
 * are dialled on trial. After a crash during a trial, the sandboxes on trial are the only suspects. An end by a foreign signal does not
 * count as a crash.
 * @param lastEnd how the previous server ended, as its service manager reports it: a signal's name or an exit status; empty if unknown
 */
export function begin(previous: CrashRecord, lastEnd: string): Beginning {
  const crashed = previous.running && !foreignSignals.has(lastEnd);
  const before = previous.running && !previous.settled ? previous.crashes : 0;
  const crashes = crashed ? before + 1 : before;
  const suspects = new Map(Object.entries(previous.suspects) as [SandboxId, number][]);
  if (crashed) for (const id of previous.trial) suspects.set(id, (suspects.get(id) ?? 0) + 1);
  return { crashes, suspects, allOnTrial: crashes >= crashesBeforeTrials && !(crashed && previous.trial.length > 0) };
}

/** The duration of a trial. It grows with the number of crashes, to catch a peer that delays its attack. Milliseconds. */
export function trialMs(crashes: number): number {
  return Math.min(crashTrialCapMs, crashTrialMs * 2 ** Math.max(0, Math.min(crashes - crashesBeforeTrials, 20)));
}

/** The delay between the server's start and the dial of a suspect. Milliseconds. @param ended crashes attributed to it, 1 or more */
export function suspectDelayMs(ended: number): number {
  return Math.min(crashDelayCapMs, crashDelayBaseMs * 2 ** Math.min(ended - 1, 20));
}

/** Treats an unreadable record as absent: it must not keep the server from starting. */
export function parseRecord(text: string): CrashRecord {
  try {
    const { running, settled, crashes, trial, suspects } = JSON.parse(text) as Record<string, unknown>;
    if (typeof crashes !== 'number' || !Number.isSafeInteger(crashes) || crashes < 0) return noCrash;
    const counts = Object.entries((suspects ?? {}) as Record<string, unknown>).filter(
      ([id, count]) => isSandboxId(id) && typeof count === 'number' && Number.isSafeInteger(count) && count > 0,
    );
    return {
      running: running === true,
      settled: settled === true,
      crashes,
      trial: Array.isArray(trial) ? trial.filter((id): id is SandboxId => typeof id === 'string' && isSandboxId(id)) : [],
      suspects: Object.fromEntries(counts) as Record<SandboxId, number>,
    };
  } catch {
    return noCrash;
  }
}
