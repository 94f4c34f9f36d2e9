import { create } from '@bufbuild/protobuf';
import { Notifier, type SandboxId } from '@drover/foundation';
import { api } from '@drover/protocol';
import { containWaitMs } from '../../limits.ts';
import {
  containmentsOf,
  hasEnded,
  runIsOver,
  sandboxState,
  type ContainmentAction,
  type HostRow,
  type SandboxRow,
} from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';

/** How far an action, or its release, has come. */
export interface Progress {
  readonly done: boolean;
  readonly message: string;
  /** It may change soon. */
  readonly waits: boolean;
}

export type ProgressOf = (action: ContainmentAction, row: SandboxRow, host: HostRow | undefined) => Progress;

const done = (message: string): Progress => ({ done: true, message, waits: false });
const never = (message: string): Progress => ({ done: false, message, waits: false });

/** How far an action has come, by the desired state and the last report of its host. */
export function containProgress(action: ContainmentAction, row: SandboxRow, host: HostRow | undefined): Progress {
  if (row.desired !== 'deleted' && !containmentsOf(row).includes(action)) return never('it was undone meanwhile');
  switch (action) {
    case 'cut-network':
      if (row.observed === undefined || hasEnded(row.observed)) {
        return done('it does not run; its network is cut from the first packet on when it starts');
      }
      return row.observedNetworkCut ? done('its network is cut, except for the session with the control plane') : atHost(host);
    case 'pause':
      if (row.observed === 'paused') return done('it is paused');
      if (row.observed === undefined) return done('it does not run, and does not until it is released');
      return runIsOver(row) ? never('it has ended, and cannot be paused') : atHost(host);
    case 'kill':
      if (hasEnded(row.observed) && (row.desired === 'stopped' || runIsOver(row))) return done('it is stopped');
      return row.hostId === undefined ? done('it runs nowhere') : atHost(host);
    case 'revoke':
      if (row.observed === undefined || hasEnded(row.observed) || row.observedRegistrationClosed) {
        return done('its identity is revoked, and it does not reach the registration port');
      }
      // No registration succeeds any more; the closed port is a second barrier.
      return { ...atHost(host), message: `its identity is revoked; closing the registration port: ${atHost(host).message}` };
    default:
      return action satisfies never;
  }
}

/** How far the release of an action has come. */
export function releaseProgress(action: ContainmentAction, row: SandboxRow, host: HostRow | undefined): Progress {
  if (containmentsOf(row).includes(action)) return never('it was contained again meanwhile');
  const { state, message } = sandboxState(row);
  switch (action) {
    case 'cut-network':
      if (row.observed === undefined || hasEnded(row.observed)) return done('it does not run; its network is not cut when it starts');
      return row.observedNetworkCut ? atHost(host) : done('its network is as its policy says');
    case 'pause':
    case 'kill':
      if (state === 'running') return done('it runs');
      if (state === 'failed' || state === 'stopped') return never(message === '' ? `it is ${state}` : `it is ${state}: ${message}`);
      return state === 'pending' ? never(message) : atHost(host);
    case 'revoke':
      return row.observedRegistrationClosed && !hasEnded(row.observed) ? atHost(host) : done('it may register again');
    default:
      return action satisfies never;
  }
}

function atHost(host: HostRow | undefined): Progress {
  if (host?.connected === true) return { done: false, message: `its host ${host.name} has not done it yet; it is stored`, waits: true };
  return never(`its host${host === undefined ? '' : ` ${host.name}`} is not connected; it takes effect when the host reconnects`);
}

/**
 * Waits until no result may change soon, at most `containWaitMs`.
 * @param stored results; one with a message is final
 */
export async function untilSettled(
  { store, feed, clock }: ApiContext,
  id: SandboxId,
  stored: readonly api.ContainmentResult[],
  progressOf: ProgressOf,
  signal: AbortSignal,
): Promise<{ readonly row: SandboxRow | undefined; readonly results: api.ContainmentResult[] }> {
  const deadline = clock.now() + containWaitMs;
  const changed = new Notifier(clock);
  const off = feed.on(id, changed.notify);
  let offHost: (() => void) | undefined;
  try {
    for (;;) {
      const row = await store.sandboxes.get(id);
      const hostId = row?.hostId;
      // Subscribed before the host is read: a host that disconnects ends the wait.
      offHost?.();
      offHost = hostId === undefined ? undefined : feed.on(hostId, changed.notify);
      const host = hostId === undefined ? undefined : await store.hosts.get(hostId);
      const progress = stored.map(({ action }) => (row === undefined ? deleted : progressOf(action as ContainmentAction, row, host)));
      const results = stored.map((result, index) => {
        const { done, message } = progress[index] ?? deleted;
        return result.message === '' ? create(api.ContainmentResultSchema, { action: result.action, done, message }) : result;
      });
      const mayChange = stored.some(({ message }, index) => message === '' && progress[index]?.waits === true);
      const leftMs = deadline - clock.now();
      if (!mayChange || leftMs <= 0) return { row, results };
      await changed.wait(signal, leftMs);
    }
  } finally {
    off();
    offHost?.();
  }
}

const deleted = never('the sandbox was deleted');
