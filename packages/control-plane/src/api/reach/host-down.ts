import { DroverError, hasCode, inTime, type HostId } from '@drover/foundation';
import { fromConnectError } from '@drover/protocol/rpc';
import { hostReturnMs } from '../../limits.ts';
import type { InitClient } from '../../sessions/index.ts';
import { hostState, labelOf, type HostRow, type SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { connectionBroke, peerIsForeign } from './peer-errors.ts';

/** The error for a host that is down (L-15), with its name and the reason. */
export function hostDownError(host: HostRow): DroverError {
  const why = host.downReason === '' ? '' : `: ${host.downReason}`;
  return new DroverError('host-unavailable', `host ${host.name} is down${why}`, {
    hint: 'its sandboxes can be reached when it reconnects; `drover host ls` shows its state',
  });
}

/**
 * How long a sandbox's host may still take to reconnect, ms: a host whose agent or control plane restarts reconnects within `hostReturnMs`.
 * Undefined while the host is up, or the sandbox has none.
 */
async function returnTime(
  { store, clock, system }: ApiContext,
  { id }: SandboxRow,
): Promise<{ host: HostRow; leftMs: number } | undefined> {
  // The present row: a drain may have moved the sandbox to another host.
  const hostId = (await store.sandboxes.get(id))?.hostId;
  const host = hostId === undefined ? undefined : await store.hosts.get(hostId);
  if (host === undefined || hostState(host) !== 'down') return undefined;
  return { host, leftMs: Math.max(host.downSince ?? 0, system.startedAt) + hostReturnMs - clock.now() };
}

/** L-15: a call that needs the sandbox's host does not wait for a host that is down. @throws {DroverError} host-unavailable */
export async function refuseDownHost(context: ApiContext, row: SandboxRow): Promise<void> {
  const found = await returnTime(context, row);
  if (found !== undefined && found.leftMs <= 0) throw hostDownError(found.host);
}

/** The error for a call to a sandbox whose session leads to something other than init. */
export function foreignPeerError(row: SandboxRow, cause: unknown): DroverError {
  const label = labelOf(row);
  return new DroverError('session-unavailable', `no session with sandbox ${label}: its peer is not an init of Drover`, {
    hint: `\`drover sandbox explain ${label}\` shows its trust checks`,
    cause,
  });
}

/**
 * The error for a call whose connection to the sandbox broke: its host is down, only the session broke, or its peer is not init. Other errors
 * are returned unchanged.
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
 * The client of a sandbox's init. Waits for a session, but not for a host that is down.
 * @throws {DroverError} host-unavailable, and what `Sessions.client` throws
 */
export async function sessionClient(context: ApiContext, row: SandboxRow, signal: AbortSignal): Promise<InitClient> {
  await refuseDownHost(context, row);
  const waiting = new AbortController();
  const either = AbortSignal.any([signal, waiting.signal]);
  const down = untilDown(context, row, either);
  // It is not awaited any more when there is a client.
  down.catch(() => undefined);
  try {
    return await Promise.race([context.sessions.client(row.id, either), down]);
  } catch (error) {
    if (!hasCode(error, 'session-unavailable')) throw error;
    const found = await returnTime(context, row);
    throw found === undefined ? error : hostDownError(found.host);
  } finally {
    waiting.abort(inTime);
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
