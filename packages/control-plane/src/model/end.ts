import { formatAge } from '@drover/foundation';
import type { ObservedState, SandboxRow } from './sandbox.ts';

/** Why a run ended: a stable word for programs, and a sentence for a person. */
export interface EndReason {
  readonly reason: string;
  readonly message: string;
  /** What a person can do about it; empty for nothing. */
  readonly hint: string;
}

export type EndColumns = Pick<SandboxRow, 'reason' | 'message' | 'hint' | 'stopCause' | 'stopBy' | 'containment' | 'spec'>;

const endedStates: ReadonlySet<ObservedState | undefined> = new Set<ObservedState>(['stopped', 'failed']);

/** Whether nothing of it runs. */
export function hasEnded(observed: ObservedState | undefined): boolean {
  return endedStates.has(observed);
}

/**
 * Why a sandbox that has ended did so. The only place that decides it: lists, events, waits and attached clients show its answer.
 *
 * A host knows that it stopped a sandbox on request, and the store who requested it and why. Everything else (its own exit, idleness,
 * memory, a restart of the host, a start that failed) is known where it happened, and stands in the row as it was reported.
 */
export function endReason(row: EndColumns): EndReason {
  const { reason, message, hint } = row;
  switch (reason) {
    case 'stopped':
      return withoutHint(stopped(row));
    case 'never-started':
      return withoutHint({ reason, message: `${stopped(row).message}, before it ran` });
    case '':
      // Removed while it ran: its host reports that nothing is left, and no end.
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
