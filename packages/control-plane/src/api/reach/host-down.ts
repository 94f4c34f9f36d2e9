import { DroverError, hasCode, type HostId } from '@drover/foundation';
import { fromConnectError } from '@drover/protocol';
import { hostReturnMs } from '../../limits.ts';
import type { InitClient } from '../../sessions/index.ts';
import { hostState, labelOf, type HostRow, type SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { connectionBroke, peerIsForeign } from './peer-errors.ts';

/** L-15, with the host's name and what is known of it. */
export function hostDownError(host: HostRow): DroverError {
  const why = host.downReason === '' ? '' : `: ${host.downReason}`;
  return new DroverError('host-unavailable', `host ${host.name} is down${why}`, {
    hint: 'its sandboxes can be reached again when it is back; `drover host ls` shows it',
  });
}

/**
 * How long a sandbox's host may still take to be back, ms: a host whose agent is restarted, or that has to find a restarted control
 * plane, is back within `hostReturnMs`. Undefined while the host is up, or the sandbox has none.
 */
async function returnTime(
  { store, clock, system }: ApiContext,
  { id }: SandboxRow,
): Promise<{ host: HostRow; leftMs: number } | undefined> {
  // As it is now: a drain may have moved it to another host.
  const hostId = (await store.sandboxes.get(id))?.hostId;
  const host = hostId === undefined ? undefined : await store.hosts.get(hostId);
  if (host === undefined || hostState(host) !== 'down') return undefined;
  return { host, leftMs: Math.max(host.downSince ?? 0, system.startedAt) + hostReturnMs - clock.now() };
}

/** L-15: what needs the sandbox's host does not wait for one that is down. @throws {DroverError} host-unavailable */
export async function refuseDownHost(context: ApiContext, row: SandboxRow): Promise<void> {
  const found = await returnTime(context, row);
  if (found !== undefined && found.leftMs <= 0) throw hostDownError(found.host);
}

/** The error for a call to a sandbox whose session leads to something other than init. */
export function foreignPeerError(row: SandboxRow, cause: unknown): DroverError {
  const label = labelOf(row);
  return new DroverError('session-unavailable', `no session with sandbox ${label}: its peer is not an init of Drover`, {
    hint: `\`drover sandbox explain ${label}\` shows what is known of it`,
    cause,
  });
}

/**
 * The error for a call whose way to the sandbox broke while it was under way: its host is down, only the session broke, or its peer is
 * not init. Other errors are returned as they are.
 */
export async function brokenCallError(context: ApiContext, row: SandboxRow, thrown: unknown): Promise<unknown> {
  if (peerIsForeign(thrown)) return foreignPeerError(row, thrown);
  if (!connectionBroke(thrown)) return thrown;
  const found = await returnTime(context, row);
  if (found !== undefined) return hostDownError(found.host);
  const error = fromConnectError(thrown);
  if (hasCode(error, 'session-unavailable', 'host-unavailable')) return error;
  return new DroverError('session-unavailable', `the connection to sandbox ${labelOf(row)} broke`, {
    hint: `try again; \`drover sandbox get ${labelOf(row)}\` shows its session`,
    cause: thrown,
  });
}

/**
 * The client of a sandbox's init. Waits for a session as `Sessions.client` does, but not for a host that is down.
 * @throws {DroverError} host-unavailable, and what `Sessions.client` throws
 */
export async function sessionClient(context: ApiContext, row: SandboxRow, signal: AbortSignal): Promise<InitClient> {
  await refuseDownHost(context, row);
  const waiting = new AbortController();
  const either = AbortSignal.any([signal, waiting.signal]);
  const down = untilDown(context, row, either);
  // Settled or not, it is not waited for once there is a client.
  down.catch(() => undefined);
  try {
    return await Promise.race([context.sessions.client(row.id, either), down]);
  } finally {
    waiting.abort();
  }
}

/** Rejects when the sandbox's host has been down for `hostReturnMs`. */
async function untilDown(context: ApiContext, row: SandboxRow, signal: AbortSignal): Promise<never> {
  const placed = async (): Promise<HostId | undefined> => (await context.store.sandboxes.get(row.id))?.hostId;
  const hostId = row.hostId ?? (await context.feed.until(row.id, placed, signal));
  for (;;) {
    const { host, leftMs } = await context.feed.until(hostId, async () => await returnTime(context, row), signal);
    if (leftMs <= 0) throw hostDownError(host);
    await context.clock.sleep(leftMs, signal);
  }
}
