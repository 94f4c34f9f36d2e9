import { DroverError } from '@drover/foundation';
import type { DroverClient, ExecHandle, ExecOptions, ExecStarted } from '@drover/sdk';
import { parseDurationMs } from '@drover/spec';
import type { Cli } from '../../cli.ts';
import { interruptKillMs } from '../../limits.ts';
import { explainEnd } from './explain-end.ts';
import { sayBroken } from './reconnect.ts';
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
  /** The id of an exec that runs already. */
  readonly attach?: string;
}

/** R-3: a process in a running sandbox; ends with its status. */
export default async function exec(cli: Cli, [reference, words]: readonly [string, readonly string[]], flags: ExecFlags): Promise<number> {
  const argv = parseCommand(words, 'SANDBOX', false);
  if (flags.attach === undefined && argv.length === 0) {
    throw new DroverError('invalid-argument', 'there is no command to run', { hint: `drover exec ${reference} -- sh` });
  }
  if (flags.attach !== undefined && argv.length > 0) {
    throw new DroverError('invalid-argument', '--attach connects with a process that runs already; it takes no command', {
      hint: 'leave out one of the two',
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

/** A command that is left running on purpose runs for as long as it likes. */
function lingerOf({ linger, detach }: ExecFlags): { readonly lingerSeconds?: number } {
  if (linger !== undefined) return { lingerSeconds: Math.ceil(parseDurationMs(linger) / 1000) };
  return detach === true ? { lingerSeconds: 0 } : {};
}

/** R-3: the main process, with what is kept of its output first. */
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
 * Interrupted before its start is reported, a new process is killed: the request to start it may be under way already. One that was
 * there before runs on.
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

/** A process that its caller lets go of on purpose runs without clients for as long as it likes. */
async function keep(client: DroverClient, reference: string, execId: string): Promise<void> {
  // Behind all of its output: none is wanted.
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
    onReconnect: sayBroken(cli),
  });
  handle.exit.catch(() => undefined);
  const started = await startedUnlessInterrupted(cli, handle, options.argv !== undefined);
  if (detached) {
    handle.detach();
    if (cli.out.json) cli.out.object({ execId: started.execId, pid: started.pid });
    else cli.out.line(started.execId);
    return 0;
  }
  if (started.truncatedBytes > 0n) cli.out.note(`${started.truncatedBytes} bytes of earlier output are no longer kept`);
  const outcome = await attachTo(cli, handle, options);
  if (outcome.kind === 'detached') {
    const { execId } = started;
    if (outcome.onPurpose && execId !== 'main' && options.lingerSeconds === undefined) await keep(client, reference, execId);
    cli.out.note(
      `detached; the process runs on: ${execId === 'main' ? `drover attach ${reference}` : `drover exec --attach ${execId} ${reference}`}`,
    );
    return 0;
  }
  if (started.execId === 'main') await explainEnd(cli, client, reference, label, outcome.exit);
  else explainExit(cli, reference, outcome.exit);
  return outcome.exit.code;
}
