import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { DroverError, isErrorCode, startFailure, type SandboxId } from '@drover/foundation';
import { api, link } from '@drover/protocol';
import { exitReportMs } from '../../limits.ts';
import { labelOf, refuseContained, restartHint, sandboxState, type SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { connectionBroke } from './peer-errors.ts';
import { hostStream } from './host-stream.ts';

/** Its main process has ended and nobody wants it started again, or it is being removed. */
export function ended(row: SandboxRow): boolean {
  const { state } = sandboxState(row);
  return state === 'stopped' || state === 'failed' || state === 'deleted' || (state === 'deleting' && row.finishedAt !== undefined);
}

/** It failed; one that removes itself (--rm) is on its way out because of that. */
function failed(row: SandboxRow): boolean {
  const { state } = sandboxState(row);
  return row.observed === 'failed' && (state === 'failed' || state === 'deleting' || state === 'deleted');
}

/** Its init plan failed, so that its command never began (I-30). */
function initFailed(row: SandboxRow): boolean {
  return failed(row) && row.reason === 'init-failed';
}

/** Init could not start its command, which so never began; the exit code is that of a shell that could not either. */
function startFailed(row: SandboxRow): boolean {
  return failed(row) && row.reason === 'start-failed';
}

/**
 * The error for a caller that needs a sandbox which has ended.
 * @param hostName the host on which it failed; empty where that is unknown
 */
export function endedError(row: SandboxRow, hostName = ''): DroverError {
  const { state, message, hint: known } = sandboxState(row);
  const own = message === '' ? '' : `: ${message}`;
  if (initFailed(row)) {
    // I-30: in the words of the step that failed, which may be any. What became of the copy afterwards is no answer to anything.
    return new DroverError('sandbox-not-running', `sandbox ${labelOf(row)} failed: ${message}`, {
      hint: `correct its setup and create it again; \`drover sandbox get ${labelOf(row)}\` shows more`,
    });
  }
  // The same as for a caller who is attached in time.
  const unstarted = startFailed(row) ? startFailure(row.exitCode, message) : undefined;
  if (unstarted !== undefined) return unstarted;
  if (row.exitCode !== undefined && !startFailed(row)) {
    return new DroverError('sandbox-not-running', `sandbox ${labelOf(row)} has ended with exit code ${row.exitCode}${own}`, {
      hint: restartHint(row),
    });
  }
  if (failed(row)) {
    // It never ran: the cause, as its host reported it, with its code.
    const text = `sandbox ${labelOf(row)} failed${hostName === '' ? '' : ` on host ${hostName}`}: ${message}`;
    const hint = known || `\`drover sandbox get ${labelOf(row)}\` shows more`;
    const error = new DroverError(isErrorCode(row.reason) ? row.reason : 'sandbox-not-running', text, { hint });
    // To a caller, a code of broken connections would say that it is worth calling again.
    return connectionBroke(error) ? new DroverError('sandbox-not-running', text, { hint }) : error;
  }
  return new DroverError('sandbox-not-running', `sandbox ${labelOf(row)} is ${state}${own}`, {
    hint: `\`drover sandbox get ${labelOf(row)}\` shows more`,
  });
}

/**
 * A call that needs a paused sandbox would wait, without a word, until it is resumed.
 * @throws {DroverError} sandbox-not-running; failed-precondition when a containment has paused it
 */
export function refusePaused(row: SandboxRow): void {
  if (sandboxState(row).state !== 'paused') return;
  refuseContained(row);
  throw new DroverError('sandbox-not-running', `sandbox ${labelOf(row)} is paused`, {
    hint: `\`drover sandbox resume ${labelOf(row)}\` lets it go on`,
  });
}

/** Output of the main process as its host keeps it, oldest first, as fast as it is read. @throws {DroverError} host-unavailable, … */
export async function* hostLogs(
  context: ApiContext,
  row: SandboxRow,
  wanted: MessageInitShape<typeof link.HostLogsSchema>,
  signal: AbortSignal,
): AsyncGenerator<link.LogRecord, void, undefined> {
  const source = { case: 'logs', value: create(link.HostLogsSchema, wanted) } as const;
  for await (const message of hostStream(context, row, source, 'reading of its log', signal)) {
    if (message.case === 'log') yield message.value;
  }
}

/**
 * The rest of a main process that has ended: the output that the caller has not seen, from the host, and the exit status.
 * @param seen output that the caller has, bytes over both streams
 * @param started whether the caller was attached before
 * @throws {DroverError} sandbox-not-running with the sandbox's own message when the process never ran
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
    // An exit status without the output is right only for who has had the output.
    if (!started) throw error;
    context.logger.warn({ err: error, sandbox: id }, 'the rest of an ended process’s output could not be read from its host');
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
  // 128 + n is how a shell, and the host, tell of signal n.
  const value = create(api.ExecExitSchema, { code: exitCode, signal: row.exitSignal, outOfMemory: row.outOfMemory });
  yield create(api.ExecResponseSchema, { payload: { case: 'exit', value } });
}

/** The row once it tells how the main process ended. The session may know of the end before the host has reported it. */
async function reportedEnd(context: ApiContext, id: SandboxId, signal: AbortSignal): Promise<SandboxRow> {
  const timeout = AbortSignal.timeout(exitReportMs);
  try {
    return await context.feed.until(
      id,
      async () => {
        const row = await context.store.sandboxes.get(id);
        if (row === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id} any more`);
        return ended(row) ? row : undefined;
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
