import { isSandboxId, type SandboxId } from '@drover/foundation';
import { crashDelayBaseMs, crashDelayCapMs, crashTrialCapMs, crashTrialMs, crashesBeforeTrials } from '../../limits.ts';

/** The record that a server leaves for the next one in its data directory, which tells a crash loop from a restart by it. */
export interface CrashRecord {
  /** The server has not closed. */
  readonly running: boolean;
  /** It has run for `crashSettledMs`: its end is not the end of a start that failed. */
  readonly settled: boolean;
  /** Servers in a row, before this one, that ended without closing before they had settled. */
  readonly crashes: number;
  /** Sandboxes that are dialled on trial: nothing else was dialled since the last trial ended well. */
  readonly trial: readonly SandboxId[];
  /** How many servers each of these sandboxes has ended, as far as the trials show. */
  readonly suspects: Readonly<Record<SandboxId, number>>;
}

export const noCrash: CrashRecord = { running: false, settled: false, crashes: 0, trial: [], suspects: {} };

/** How a server begins, by what the one before it has left. */
export interface Beginning {
  readonly crashes: number;
  readonly suspects: ReadonlyMap<SandboxId, number>;
  /** Each sandbox is dialled on trial, since any of them may have ended the servers before. */
  readonly allOnTrial: boolean;
}

/** Signals that come from outside: an operator, a service manager, or the kernel's lack of memory. A peer cannot send them. */
const foreignSignals: ReadonlySet<string> = new Set(['SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT']);

/**
 * One crash is nothing to learn from: a healthy server may have been killed. From `crashesBeforeTrials` crashes in a row on, sandboxes
 * are dialled on trial. A crash during a trial leaves those on trial as the only suspects. A server that is known to have been killed from
 * outside adds nothing to either.
 * @param lastEnd how it ended, as its service manager reports it: the name of a signal or an exit status; empty when it is not known
 */
export function begin(left: CrashRecord, lastEnd: string): Beginning {
  const crashed = left.running && !foreignSignals.has(lastEnd);
  const before = left.running && !left.settled ? left.crashes : 0;
  const crashes = crashed ? before + 1 : before;
  const suspects = new Map(Object.entries(left.suspects) as [SandboxId, number][]);
  if (crashed) for (const id of left.trial) suspects.set(id, (suspects.get(id) ?? 0) + 1);
  return { crashes, suspects, allOnTrial: crashes >= crashesBeforeTrials && !(crashed && left.trial.length > 0) };
}

/** How long a trial lasts: longer after more crashes, for a peer that bides its time. Milliseconds. */
export function trialMs(crashes: number): number {
  return Math.min(crashTrialCapMs, crashTrialMs * 2 ** Math.max(0, Math.min(crashes - crashesBeforeTrials, 20)));
}

/** How long after the server's start a suspect is dialled. @param ended servers that it has ended, 1 or more. Milliseconds. */
export function suspectDelayMs(ended: number): number {
  return Math.min(crashDelayCapMs, crashDelayBaseMs * 2 ** Math.min(ended - 1, 20));
}

/** A file that cannot be read as a record is as good as none: it must not keep the server from starting. */
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
