import { DroverError, hasCode } from '@drover/foundation';
import type { api } from '@drover/protocol';
import type { CreateOptions, DroverClient } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { interruptGraceMs, removalWaitMs } from '../../limits.ts';

/**
 * Creates a sandbox. On an interrupt it still waits for the response, which names the sandbox to remove: the control plane carries out a
 * create even if its caller has disconnected.
 * @throws {DroverError} cancelled on an interrupt
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
  return new DroverError('cancelled', 'interrupted before the control plane reported whether it created the sandbox', {
    hint: 'drover sandbox ls lists it, and drover sandbox rm --force removes it',
  });
}

/** Removes the sandbox of an interrupted command. @throws {DroverError} the interruption, always */
export async function removeInterrupted(cli: Cli, client: DroverClient, id: string): Promise<never> {
  await removeFailed(cli, client, id);
  try {
    // The next command may use the same name.
    await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: removalWaitMs, signal: AbortSignal.timeout(removalWaitMs) });
  } catch {
    // The control plane has stored the removal, or removeFailed has reported why not.
  }
  throw cli.signal.reason;
}

/** Removes the sandbox of a failed start; notes on stderr if that fails. */
export async function removeFailed(cli: Cli, client: DroverClient, id: string): Promise<void> {
  try {
    await client.sandboxes.remove(id, { graceMs: 1, signal: AbortSignal.timeout(interruptGraceMs) });
  } catch (removal) {
    if (hasCode(removal, 'sandbox-not-found')) return;
    cli.out.note(`sandbox ${id} could not be removed: ${DroverError.from(removal).message}; drover sandbox rm --force ${id} removes it`);
  }
}
