import { abortable, DroverError, hasCode } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { actionsOf, type DroverClient } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { explainEnd } from './explain-end.ts';
import { planFailure } from './init-text.ts';
import { createSandbox, removeFailed, removeInterrupted } from './create.ts';
import { sayBroken } from './reconnect.ts';
import { removalWaitMs } from '../../limits.ts';
import { atTerminal, attach, terminalSize } from '../../attach.ts';
import { createOptions, type SpecFlags } from './spec.ts';
import { sandboxJson } from './show.ts';
import { withProgress } from './progress.ts';
import { sandboxLabel } from '../../output/index.ts';

export interface RunFlags extends SpecFlags {
  readonly detach?: boolean;
  /** -t; false with --no-tty. Absent: when the caller is at a terminal. */
  readonly tty?: boolean;
  readonly interactive?: boolean;
  /** False with --no-stdin. */
  readonly stdin?: boolean;
}

/** creates a sandbox, connects the caller with its command, and ends with the command's status. */
export default async function run(cli: Cli, [image, command]: readonly [string, readonly string[]], flags: RunFlags): Promise<number> {
  const detached = flags.detach === true;
  const terminal = flags.tty ?? (!detached && atTerminal() && flags.stdin !== false);
  const stdin = detached ? flags.interactive === true : flags.stdin !== false;
  const options = await createOptions(image, command, flags, { terminal, stdin, stdinTaken: !detached && stdin });
  const client = await cli.connect();
  const created = await createSandbox(cli, client, options);
  if (detached) {
    const ready = client.sandboxes.waitReady(created.id, {
      generation: created.generation,
      onReconnect: sayBroken(cli),
      signal: cli.signal,
    });
    const running = await orRemove(cli, client, created.id, flags.rm === true, ready);
    if (cli.signal.aborted) await removeInterrupted(cli, client, created.id);
    if (cli.out.json) cli.out.object(sandboxJson(running));
    else cli.out.line(sandboxLabel(running));
    return 0;
  }
  const handle = client.sandboxes.exec(created.id, {
    execId: 'main',
    terminal,
    ...(terminal && { size: terminalSize() }),
    stdin,
    replay: true,
    onReconnect: sayBroken(cli),
  });
  handle.exit.catch(() => undefined);
  const started = abortable(handle.started, cli.signal);
  await orRemove(cli, client, created.id, flags.rm === true, started, () => handle.detach());
  // Interrupted in the moment of the start: from here on, signals go to the command.
  if (cli.signal.aborted) await removeInterrupted(cli, client, created.id);
  const outcome = await attach(cli, handle, { terminal, stdin });
  if (outcome.kind === 'detached') {
    cli.out.note(`detached; ${sandboxLabel(created)} runs on: drover attach ${sandboxLabel(created)}`);
    return 0;
  }
  await explainEnd(cli, client, created.id, sandboxLabel(created), outcome.exit);
  if (flags.rm === true) await removeEnded(cli, client, created.id);
  return outcome.exit.code;
}

/**
 * A start that failed or was given up leaves nothing behind; its own sentence is the one that is said. A sandbox whose init plan
 * failed is left to be looked at (I-30), unless it was to be removed.
 */
async function orRemove<T>(
  cli: Cli,
  client: DroverClient,
  id: string,
  removed: boolean,
  work: Promise<T>,
  before?: () => void,
): Promise<T> {
  try {
    return await withProgress(cli, client, id, work);
  } catch (error) {
    before?.();
    if (cli.signal.aborted) await removeInterrupted(cli, client, id);
    const sandbox = hasCode(error, 'control-plane-unreachable') ? undefined : await lastSeen(client, id);
    const failure = sandbox === undefined ? undefined : planFailure(sandbox, !removed);
    if (failure !== undefined && !removed) throw failure;
    await removeFailed(cli, client, id);
    throw failure ?? reasonOf(sandbox, error);
  }
}

async function lastSeen(client: DroverClient, id: string): Promise<api.Sandbox | undefined> {
  try {
    return await client.sandboxes.get(id);
  } catch {
    // What went wrong before says more.
    return undefined;
  }
}

/** Where only the session is missing, the sandbox's own state says why. */
function reasonOf(sandbox: api.Sandbox | undefined, thrown: unknown): unknown {
  if (!hasCode(thrown, 'session-unavailable') || sandbox === undefined || sandbox.message === '') return thrown;
  return new DroverError('session-unavailable', sandbox.message, {
    cause: thrown,
    ...(thrown.hint !== undefined && { hint: thrown.hint }),
  });
}

/** --rm: gone when the command returns, its name free again. The control plane does it in any case, a little later. */
async function removeEnded(cli: Cli, client: DroverClient, id: string): Promise<void> {
  try {
    // The host tells of the end a moment after the session did; its exit code is to be stored.
    const ended = await client.sandboxes.waitFor(id, ['stopped', 'failed', 'deleting', 'deleted'], { timeoutMs: removalWaitMs });
    // I-4: what was contained is kept to be looked at, as the control plane keeps it.
    if (actionsOf(ended.containment).length > 0) {
      cli.out.note(`${sandboxLabel(ended)} is contained and kept: drover sandbox rm ${sandboxLabel(ended)} removes it`);
      return;
    }
    await client.sandboxes.remove(id);
    await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: removalWaitMs });
  } catch (error) {
    if (!hasCode(error, 'sandbox-not-found')) cli.out.note(`sandbox ${id} is removed later: ${DroverError.from(error).message}`);
  }
}
