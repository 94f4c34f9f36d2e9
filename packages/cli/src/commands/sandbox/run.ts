import { abortable, DroverError, hasCode } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { actionsOf, type DroverClient } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { explainEnd } from './explain-end.ts';
import { planFailure } from './init-text.ts';
import { createSandbox, removeFailed, removeInterrupted } from './create.ts';
import { noteReconnects } from './reconnect.ts';
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

/** creates a sandbox, connects the caller to its command, and returns the command's status. */
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
      onReconnect: noteReconnects(cli),
      signal: cli.signal,
    });
    const running = await startedOrRemoved(cli, client, created.id, flags.rm === true, ready);
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
    onReconnect: noteReconnects(cli),
  });
  handle.exit.catch(() => undefined);
  const started = abortable(handle.started, cli.signal);
  await startedOrRemoved(cli, client, created.id, flags.rm === true, started, () => handle.detach());
  // The interrupt may have arrived during the start. From here on, signals go to the command.
  if (cli.signal.aborted) await removeInterrupted(cli, client, created.id);
  const outcome = await attach(cli, handle, { terminal, stdin });
  if (outcome.kind === 'detached') {
    cli.out.note(`detached; ${sandboxLabel(created)} keeps running: drover attach ${sandboxLabel(created)}`);
    return 0;
  }
  await explainEnd(cli, client, created.id, sandboxLabel(created), outcome.exit);
  if (flags.rm === true) await removeEnded(cli, client, created.id);
  return outcome.exit.code;
}

/**
 * Waits for the start. A sandbox that fails to start is removed, and its own error is thrown. A sandbox whose init plan failed is kept
 * for inspection (I-30), unless --rm was given.
 * @param beforeRemoval runs before a failed sandbox is removed
 */
async function startedOrRemoved<T>(
  cli: Cli,
  client: DroverClient,
  id: string,
  remove: boolean,
  work: Promise<T>,
  beforeRemoval?: () => void,
): Promise<T> {
  try {
    return await withProgress(cli, client, id, work);
  } catch (error) {
    beforeRemoval?.();
    if (cli.signal.aborted) await removeInterrupted(cli, client, id);
    const sandbox = hasCode(error, 'control-plane-unreachable') ? undefined : await lastSeen(client, id);
    const failure = sandbox === undefined ? undefined : planFailure(sandbox, !remove);
    if (failure !== undefined && !remove) throw failure;
    await removeFailed(cli, client, id);
    throw failure ?? reasonOf(sandbox, error);
  }
}

async function lastSeen(client: DroverClient, id: string): Promise<api.Sandbox | undefined> {
  try {
    return await client.sandboxes.get(id);
  } catch {
    // The earlier error is more useful than this one.
    return undefined;
  }
}

/** The sandbox's state explains why its session is unavailable. */
function reasonOf(sandbox: api.Sandbox | undefined, thrown: unknown): unknown {
  if (!hasCode(thrown, 'session-unavailable') || sandbox === undefined || sandbox.message === '') return thrown;
  return new DroverError('session-unavailable', sandbox.message, {
    cause: thrown,
    ...(thrown.hint !== undefined && { hint: thrown.hint }),
  });
}

/** --rm: removes the sandbox before the command returns, so that its name is free. Otherwise the control plane removes it a little later. */
async function removeEnded(cli: Cli, client: DroverClient, id: string): Promise<void> {
  try {
    // The host reports the end a moment after the session does. Wait, so that the exit code is stored.
    const ended = await client.sandboxes.waitFor(id, ['stopped', 'failed', 'deleting', 'deleted'], { timeoutMs: removalWaitMs });
    // I-4: a contained sandbox is kept for inspection.
    if (actionsOf(ended.containment).length > 0) {
      cli.out.note(`${sandboxLabel(ended)} is contained and was not removed: drover sandbox rm ${sandboxLabel(ended)} removes it`);
      return;
    }
    await client.sandboxes.remove(id);
    await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: removalWaitMs });
  } catch (error) {
    if (!hasCode(error, 'sandbox-not-found')) cli.out.note(`sandbox ${id} will be removed later: ${DroverError.from(error).message}`);
  }
}
