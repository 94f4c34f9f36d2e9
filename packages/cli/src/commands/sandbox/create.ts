import { DroverError, hasCode } from '@drover/foundation';
import type { api } from '@drover/protocol';
import type { CreateOptions, DroverClient } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { interruptGraceMs, removalWaitMs } from '../../limits.ts';

/**
 * Creates a sandbox. Interrupted, it waits for the answer, which names the sandbox to remove: a create that was sent is carried out
 * whether or not its caller is still there.
 * @throws {DroverError} cancelled when interrupted
 */
export async function createSandbox(cli: Cli, client: DroverClient, options: CreateOptions): Promise<api.Sandbox> {
  cli.signal.throwIfAborted();
  const answer = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const onInterrupt = (): void => {
    timer = setTimeout(() => answer.abort(unknownResult()), interruptGraceMs);
  };
  cli.signal.addEventListener('abort', onInterrupt, { once: true });
  try {
    const sandbox = await client.sandboxes.create({ ...options, signal: answer.signal });
    if (cli.signal.aborted) await removeInterrupted(cli, client, sandbox.id);
    return sandbox;
  } finally {
    clearTimeout(timer);
    cli.signal.removeEventListener('abort', onInterrupt);
  }
}

function unknownResult(): DroverError {
  return new DroverError('cancelled', 'interrupted, and the control plane has not said whether the sandbox was created', {
    hint: '`drover sandbox ls` shows it, and `drover sandbox rm --force` removes it',
  });
}

/** Removes the sandbox of an interrupted command. @throws {DroverError} the interruption, always */
export async function removeInterrupted(cli: Cli, client: DroverClient, id: string): Promise<never> {
  await removeFailed(cli, client, id);
  try {
    // The next command may want the name.
    await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: removalWaitMs, signal: AbortSignal.timeout(removalWaitMs) });
  } catch {
    // The control plane has stored the removal, or the note above says that it could not.
  }
  throw cli.signal.reason;
}

/** Removes what a failed start left, and says when that was not possible. */
export async function removeFailed(cli: Cli, client: DroverClient, id: string): Promise<void> {
  try {
    await client.sandboxes.remove(id, { graceMs: 1, signal: AbortSignal.timeout(interruptGraceMs) });
  } catch (removal) {
    if (hasCode(removal, 'sandbox-not-found')) return;
    cli.out.note(`sandbox ${id} could not be removed: ${DroverError.from(removal).message}; drover sandbox rm --force ${id} removes it`);
  }
}
