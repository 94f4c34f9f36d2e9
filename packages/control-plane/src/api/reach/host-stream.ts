import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { link, readHostStream } from '@drover/protocol';
import type { HostStreamSource } from '../../hub/index.ts';
import { initSilenceMs } from '../../limits.ts';
import { labelOf, type SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { brokenCallError, refuseDownHost } from './host-down.ts';
import { inTime } from './deadlines.ts';

/**
 * Data of a sandbox from its host, as fast as it is read; nothing for a sandbox without a host.
 * @param what for the error, `copy`
 * @throws {DroverError} host-unavailable; timed-out when the host sends nothing for `initSilenceMs`; the host's own error
 */
export async function* hostStream(
  context: ApiContext,
  row: SandboxRow,
  source: HostStreamSource,
  what: string,
  signal: AbortSignal,
): AsyncGenerator<link.HostStreamMessage['message'], void, undefined> {
  if (row.hostId === undefined) return;
  await refuseDownHost(context, row);
  const late = (ms: number): DroverError =>
    new DroverError('timed-out', `the host of sandbox ${labelOf(row)} did not respond to the ${what} within ${ms / 1000} s`, {
      hint: 'its disk may be overloaded; `drover host ls` shows the host',
    });
  const ended = new AbortController();
  const either = AbortSignal.any([signal, ended.signal]);
  try {
    const tunnel = await context.hub.openHostStream(row.hostId, row.id, source, either);
    yield* inTime(readHostStream(tunnel, either), context.clock, () => initSilenceMs, late);
  } catch (thrown) {
    throw await brokenCallError(context, row, thrown);
  } finally {
    ended.abort();
  }
}

/** The retained output of the main process from its host, oldest first, as fast as it is read. @throws {DroverError} as `hostStream` */
export async function* hostLogs(
  context: ApiContext,
  row: SandboxRow,
  range: MessageInitShape<typeof link.HostLogsSchema>,
  signal: AbortSignal,
): AsyncGenerator<link.LogRecord, void, undefined> {
  const source = { case: 'logs', value: create(link.HostLogsSchema, range) } as const;
  for await (const message of hostStream(context, row, source, 'reading of its log', signal)) {
    if (message.case === 'log') yield message.value;
  }
}
