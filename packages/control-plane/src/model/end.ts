import { formatAge } from '@drover/foundation';
import type { ObservedState, SandboxRow } from './sandbox.ts';

/** Why a run ended: a stable word for programs, a sentence and a hint for people. */
export interface EndReason {
  readonly reason: string;
  readonly message: string;
  /** What the reader can do about it; empty: nothing. */
  readonly hint: string;
}

export type EndColumns = Pick<SandboxRow, 'reason' | 'message' | 'hint' | 'stopCause' | 'stopBy' | 'containment' | 'spec'>;

const endedStates: ReadonlySet<ObservedState | undefined> = new Set<ObservedState>(['stopped', 'failed']);

/** Whether the observed state is terminal: no process of the sandbox runs. */
export function hasEnded(observed: ObservedState | undefined): boolean {
  return endedStates.has(observed);
}

/**
 * Why a sandbox ended. Lists, events, waits and attached clients all show this result.
 *
 * For a requested stop the host reports only `stopped`, and the store adds the caller and the cause. For any other end (an exit, idleness,
 * memory, a restart of the host, a failed start) the row has the reason as it was reported.
 */
export function endReason(row: EndColumns): EndReason {
  const { reason, message, hint } = row;
  switch (reason) {
    case 'stopped':
      return withoutHint(stopped(row));
    case 'never-started':
      return withoutHint({ reason, message: `${stopped(row).message}, before it ran` });
    case '':
      // A sandbox that was removed while it ran: its host reports the missing copy, but no end of the run.
      return row.stopCause === undefined ? { reason, message, hint } : withoutHint(stopped(row));
    default:
      return { reason, message, hint };
  }
}

function withoutHint(reason: Omit<EndReason, 'hint'>): EndReason {
  return { ...reason, hint: '' };
}

function stopped({ stopCause, stopBy, containment, spec }: EndColumns): Omit<EndReason, 'hint'> {
  const by = stopBy === '' ? '' : ` by ${stopBy}`;
  switch (stopCause) {
    case 'ttl':
      return { reason: 'ttl', message: `stopped at the end of its time to live (${formatAge(Number(spec.ttlSeconds) * 1000)})` };
    case 'drain':
      return { reason: 'drained', message: 'stopped by a drain of its host, as no other host has room for it' };
    case 'contained': {
      const why = containment.kill?.reason ?? '';
      return { reason: 'contained', message: `killed${by} to contain it${why === '' ? '' : `: ${why}`}` };
    }
    case 'removed':
      return { reason: 'removed', message: `removed${by}` };
    case 'asked':
    case undefined:
      return { reason: 'stopped', message: `stopped${by}` };
    default:
      return stopCause satisfies never;
  }
}
