import { DroverError } from '@drover/foundation';
import type { DroverClient, ExecHandle, ExecOptions, ExecStarted } from '@drover/sdk';
import { parseDurationMs } from '@drover/spec';
import type { Cli } from '../../cli.ts';
import { interruptKillMs } from '../../limits.ts';
import { explainEnd } from './explain-end.ts';
import { noteReconnects } from './reconnect.ts';
import { parseCommand, parseEnv, readEnvFile } from '../../parse.ts';
import { atTerminal, attach as attachTo, explainExit, terminalSize } from '../../attach.ts';
import { sandboxLabel } from '../../output/index.ts';

export interface ExecFlags {
  readonly tty?: boolean;
  readonly interactive?: boolean;
  readonly stdin?: boolean;
  readonly detach?: boolean;
  readonly linger?: string;
  readonly user?: string;
  readonly workdir?: string;
  readonly env?: readonly string[];
  readonly envFile?: readonly string[];
  /** The id of a running exec. */
  readonly attach?: string;
}

/** R-3: runs a process in a running sandbox, and returns its status. */
export default async function exec(cli: Cli, [reference, words]: readonly [string, readonly string[]], flags: ExecFlags): Promise<number> {
  const argv = parseCommand(words, 'SANDBOX', false);
  if (flags.attach === undefined && argv.length === 0) {
    throw new DroverError('invalid-argument', 'no command was given', { hint: `drover exec ${reference} -- sh` });
  }
  if (flags.attach !== undefined && argv.length > 0) {
    throw new DroverError('invalid-argument', '--attach connects to a running process, so it takes no command', {
      hint: 'leave out --attach or the command',
    });
  }
  const terminal = flags.tty ?? (flags.detach !== true && atTerminal() && flags.stdin !== false);
  const stdin = flags.detach === true ? flags.interactive === true : flags.stdin !== false;
  const fromFiles = (await Promise.all((flags.envFile ?? []).map(readEnvFile))).flat();
  return execute(
    cli,
    reference,
    {
      ...(flags.attach === undefined ? { argv } : { execId: flags.attach, replay: true }),
      env: parseEnv([...fromFiles, ...(flags.env ?? [])], process.env),
      ...(flags.workdir !== undefined && { workdir: flags.workdir }),
      ...(flags.user !== undefined && { user: flags.user }),
      terminal,
      stdin,
      ...lingerOf(flags),
    },
    flags.detach === true,
  );
}

/** A detached command has no linger time. */
function lingerOf({ linger, detach }: ExecFlags): { readonly lingerSeconds?: number } {
  if (linger !== undefined) return { lingerSeconds: Math.ceil(parseDurationMs(linger) / 1000) };
  return detach === true ? { lingerSeconds: 0 } : {};
}

/** R-3: connects to the main process, and replays its retained output first. */
export async function attach(
  cli: Cli,
  [reference]: readonly [string],
  flags: { readonly stdin?: boolean; readonly replay?: boolean },
): Promise<number> {
  const client = await cli.connect();
  const sandbox = await client.sandboxes.get(reference, cli.signal);
  const terminal = sandbox.spec?.terminal === true;
  const stdin = flags.stdin !== false && sandbox.spec?.stdin === true;
  return execute(cli, sandbox.id, { execId: 'main', terminal, stdin, replay: flags.replay !== false }, false, sandboxLabel(sandbox));
}

/**
 * Waits for the start. An interrupt kills a new process, since its request may be under way; an existing process keeps running.
 * @param isNew whether this command starts the process
 */
async function startedUnlessInterrupted(cli: Cli, handle: ExecHandle, isNew: boolean): Promise<ExecStarted> {
  let timer: NodeJS.Timeout | undefined;
  const onInterrupt = (): void => {
    if (isNew) handle.kill('SIGKILL');
    timer = setTimeout(() => handle.detach(), isNew ? interruptKillMs : 0);
    const letGo = (): void => handle.detach();
    handle.exit.then(letGo, letGo);
  };
  cli.signal.addEventListener('abort', onInterrupt, { once: true });
  try {
    const started = await handle.started;
    if (!cli.signal.aborted) return started;
    await handle.exit;
    throw cli.signal.reason;
  } catch (error) {
    throw cli.signal.aborted ? cli.signal.reason : error;
  } finally {
    clearTimeout(timer);
    cli.signal.removeEventListener('abort', onInterrupt);
  }
}

/** Removes the linger time of a process from which its caller detaches on purpose. */
async function disableLinger(client: DroverClient, reference: string, execId: string): Promise<void> {
  // An offset beyond all output: this call needs none.
  const handle = client.sandboxes.exec(reference, { execId, lingerSeconds: 0, afterOffset: BigInt(Number.MAX_SAFE_INTEGER) });
  handle.exit.catch(() => undefined);
  await handle.started;
  handle.detach();
}

async function execute(
  cli: Cli,
  reference: string,
  options: ExecOptions & { readonly terminal: boolean; readonly stdin: boolean },
  detached: boolean,
  label = reference,
): Promise<number> {
  const client = await cli.connect();
  const handle = client.sandboxes.exec(reference, {
    ...options,
    ...(options.terminal && { size: terminalSize() }),
    onReconnect: noteReconnects(cli),
  });
  handle.exit.catch(() => undefined);
  const started = await startedUnlessInterrupted(cli, handle, options.argv !== undefined);
  if (detached) {
    handle.detach();
    if (cli.out.json) cli.out.object({ execId: started.execId, pid: started.pid });
    else cli.out.line(started.execId);
    return 0;
  }
  if (started.truncatedBytes > 0n) cli.out.note(`${started.truncatedBytes} bytes of earlier output are no longer retained`);
  const outcome = await attachTo(cli, handle, options);
  if (outcome.kind === 'detached') {
    const { execId } = started;
    if (outcome.onPurpose && execId !== 'main' && options.lingerSeconds === undefined) await disableLinger(client, reference, execId);
    cli.out.note(
      `detached; the process keeps running: ${execId === 'main' ? `drover attach ${reference}` : `drover exec --attach ${execId} ${reference}`}`,
    );
    return 0;
  }
  if (started.execId === 'main') await explainEnd(cli, client, reference, label, outcome.exit);
  else explainExit(cli, reference, outcome.exit);
  return outcome.exit.code;
}
