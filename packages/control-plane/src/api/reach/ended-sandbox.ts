import { DroverError, isErrorCode, startFailure } from '@drover/foundation';
import { labelOf, refuseContained, restartHint, sandboxState, type SandboxRow } from '../../model/index.ts';
import { connectionBroke } from './peer-errors.ts';

/** Its main process has ended and its desired state is not another start, or it is being removed. */
export function hasEnded(row: SandboxRow): boolean {
  const { state } = sandboxState(row);
  return state === 'stopped' || state === 'failed' || state === 'deleted' || (state === 'deleting' && row.finishedAt !== undefined);
}

/** It failed. One that removes itself (--rm) is being deleted because of that. */
function failed(row: SandboxRow): boolean {
  const { state } = sandboxState(row);
  return row.observed === 'failed' && (state === 'failed' || state === 'deleting' || state === 'deleted');
}

/** Its init plan failed, so that its command never began (I-30). */
export function initFailed(row: SandboxRow): boolean {
  return failed(row) && row.reason === 'init-failed';
}

/** Init could not start its command, which never began. The exit code is that of a shell in the same situation. */
export function startFailed(row: SandboxRow): boolean {
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
    // I-30: the error of the failed step. How the copy ended afterwards is irrelevant.
    return new DroverError('sandbox-not-running', `sandbox ${labelOf(row)} failed: ${message}`, {
      hint: `correct its setup and create it again; \`drover sandbox get ${labelOf(row)}\` shows more`,
    });
  }
  // The same error as for a caller that attached in time.
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
    // The code of a broken connection would tell a caller to try again.
    return connectionBroke(error) ? new DroverError('sandbox-not-running', text, { hint }) : error;
  }
  return new DroverError('sandbox-not-running', `sandbox ${labelOf(row)} is ${state}${own}`, {
    hint: `\`drover sandbox get ${labelOf(row)}\` shows more`,
  });
}

/**
 * Refuses a call to a paused sandbox, which would otherwise wait silently until the sandbox is resumed.
 * @throws {DroverError} sandbox-not-running; failed-precondition when a containment has paused it
 */
export function refusePaused(row: SandboxRow): void {
  if (sandboxState(row).state !== 'paused') return;
  refuseContained(row);
  throw new DroverError('sandbox-not-running', `sandbox ${labelOf(row)} is paused`, {
    hint: `\`drover sandbox resume ${labelOf(row)}\` continues it`,
  });
}
