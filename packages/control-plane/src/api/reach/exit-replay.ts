import { create } from '@bufbuild/protobuf';
import { DroverError, type SandboxId } from '@drover/foundation';
import { api, link } from '@drover/protocol';
import { exitReportMs } from '../../limits.ts';
import type { SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { endedError, hasEnded, initFailed, startFailed } from './ended-sandbox.ts';
import { hostLogs } from './host-stream.ts';

/**
 * The rest of a main process that has ended: the output that the caller lacks, from the host, and the exit status.
 * @param seen output that the caller has received, bytes over both streams
 * @param started whether the caller was attached before
 * @throws {DroverError} sandbox-not-running with the sandbox's message when the process never ran
 */
export async function* replayMain(
  context: ApiContext,
  id: SandboxId,
  seen: bigint,
  started: boolean,
  signal: AbortSignal,
): AsyncGenerator<api.ExecResponse> {
  const row = await reportedEnd(context, id, signal);
  const { exitCode } = row;
  if (exitCode === undefined || initFailed(row) || startFailed(row)) {
    const host = row.hostId === undefined ? undefined : await context.store.hosts.get(row.hostId);
    throw endedError(row, host?.name);
  }
  const records = hostLogs(context, row, {}, signal)[Symbol.asyncIterator]();
  let next: IteratorResult<link.LogRecord, void> = { done: true, value: undefined };
  try {
    next = await records.next();
  } catch (error) {
    // Without the output, the exit status is useful only to a caller that was attached.
    if (!started) throw error;
    context.logger.warn({ err: error, sandbox: id }, 'the remaining output of an ended process could not be read from its host');
  }
  if (!started) {
    const truncatedBytes = next.done === true ? 0n : next.value.droppedBytes;
    const value = create(api.ExecStartedSchema, { execId: 'main', truncatedBytes });
    yield create(api.ExecResponseSchema, { payload: { case: 'started', value } });
  }
  for (; next.done !== true; next = await records.next()) {
    const { stream, data, offset } = next.value;
    if (data.byteLength === 0 || offset + BigInt(data.byteLength) <= seen) continue;
    const skip = seen > offset ? Number(seen - offset) : 0;
    const value = create(api.ExecOutputSchema, {
      stderr: stream === link.LogRecord_Stream.STDERR,
      data: data.subarray(skip),
      offset: offset + BigInt(skip),
    });
    yield create(api.ExecResponseSchema, { payload: { case: 'output', value } });
  }
  // A code of 128 + n stands for signal n, as with a shell.
  const value = create(api.ExecExitSchema, { code: exitCode, signal: row.exitSignal, outOfMemory: row.outOfMemory });
  yield create(api.ExecResponseSchema, { payload: { case: 'exit', value } });
}

/** The row after the host has reported the end of the main process. The session may report the end first. */
async function reportedEnd(context: ApiContext, id: SandboxId, signal: AbortSignal): Promise<SandboxRow> {
  const timeout = AbortSignal.timeout(exitReportMs);
  try {
    return await context.feed.until(
      id,
      async () => {
        const row = await context.store.sandboxes.get(id);
        if (row === undefined) throw new DroverError('sandbox-not-found', `sandbox ${id} no longer exists`);
        return hasEnded(row) ? row : undefined;
      },
      AbortSignal.any([signal, timeout]),
    );
  } catch (error) {
    if (!timeout.aborted || signal.aborted) throw error;
    throw new DroverError('session-unavailable', 'the process has ended, and its host has not reported how', {
      hint: 'try again when the host is back; `drover host ls` shows it',
      cause: error,
    });
  }
}
