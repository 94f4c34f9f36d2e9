import { isatty } from 'node:tty';
import { CommanderError } from 'commander';
import { DroverError, hasCode } from '@drover/foundation';
import type { DroverClient } from '@drover/sdk';
import type { Cli } from './cli.ts';
import { Output } from './output/output.ts';
import { buildProgram, type CommonFlags } from './program.ts';

/** Commands whose status is the command's own: what Drover could not do is 125 there, as with docker. */
const wrappers = new Set(['run', 'exec', 'attach']);
const interrupted = 130;

/** Runs one command line and gives the exit status. Everything that goes wrong is said here, in one place. */
export async function runCli(argv: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<number> {
  let status: number | undefined;
  const state: { server?: string } = {};
  const out = (json: boolean): Output =>
    new Output({
      json,
      stdout: process.stdout,
      stderr: process.stderr,
      interactive: isatty(2) && env['CI'] === undefined,
    });
  const json = wantsJson(argv);

  const run = async (flags: CommonFlags, work: (cli: Cli) => Promise<number | void>): Promise<void> => {
    await using cli = new RunningCli(out(flags.output === 'json'), env, flags, state);
    status = (await work(cli)) ?? 0;
  };
  try {
    if (argv[0] === 'complete' || argv[0] === 'completion') {
      return await (await import('./completion.ts')).complete(argv, env);
    }
    // Internal: its arguments are between the agent and the gateway.
    if (argv[0] === 'gateway') return await (await import('@drover/gateway')).gatewayMain(argv.slice(1));
    const program = buildProgram(run, { completionStub: true });
    for (const command of [program, ...walk(program)]) {
      command.exitOverride();
      // Errors are said by us, in one place.
      command.configureOutput({ outputError: () => undefined, writeErr: () => undefined });
    }
    if (argv.length === 0) {
      program.outputHelp();
      return 0;
    }
    await program.parseAsync([...argv], { from: 'user' });
    return status ?? Number(process.exitCode ?? 0);
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return 0;
    const error = explain(thrown, argv, state.server);
    out(json).error(error);
    if (wrappers.has(argv[0] ?? '')) return (await import('./terminal/attach.ts')).wrapperStatus(error);
    return error.exitCode;
  }
}

function* walk(command: import('commander').Command): Generator<import('commander').Command> {
  for (const inner of command.commands) {
    yield inner;
    yield* walk(inner);
  }
}

/** An error before the flags are parsed has a format too. */
function wantsJson(argv: readonly string[]): boolean {
  const end = argv.indexOf('--');
  const own = end < 0 ? argv : argv.slice(0, end);
  return own.some(
    (arg, i) => arg === '-ojson' || arg === '--output=json' || ((arg === '-o' || arg === '--output') && own[i + 1] === 'json'),
  );
}

/** The sentence for a person. */
function explain(thrown: unknown, argv: readonly string[], server: string | undefined): DroverError {
  if (thrown instanceof CommanderError) return usageError(thrown, argv);
  const error = DroverError.from(thrown);
  // Without a client of the CLI's own, as in a join, the error says itself where and why.
  if (hasCode(error, 'control-plane-unreachable') && server !== undefined) {
    return new DroverError(error.code, `cannot reach the control plane at ${server}`, { hint: 'start it with ./drover up', cause: error });
  }
  return error;
}

/** Commander's `error: unknown option '--x'\n(Did you mean --y?)` as a sentence and a hint. */
function usageError(error: CommanderError, argv: readonly string[]): DroverError {
  if (error.code === 'commander.help') {
    const names = argv.filter((arg) => !arg.startsWith('-')).join(' ');
    return new DroverError('invalid-argument', `drover ${names} needs a command of its own`, {
      hint: `drover ${names} --help lists them`,
      cause: error,
    });
  }
  const [first = '', ...rest] = error.message.replace(/^error: /, '').split('\n');
  const suggestion = /\(?(Did you mean .*\?)\)?/.exec(rest.join(' '))?.[1];
  const command = argv.find((arg) => !arg.startsWith('-'));
  const theirs = wrappers.has(command ?? '') && error.code === 'commander.unknownOption' && !argv.includes('--');
  const hints = [
    ...(suggestion === undefined ? [] : [suggestion]),
    ...(theirs ? [`flags of the command to run go behind --: drover ${command} NAME -- CMD --flag`] : []),
  ];
  return new DroverError('invalid-argument', first, {
    hint: hints.join(' ') || `drover ${known(command)}--help lists what there is`,
    cause: error,
  });
}

function known(command: string | undefined): string {
  return command === undefined || !/^[a-z]+$/.test(command) ? '' : `${command} `;
}

/** One command's life: its signals and its connection. */
class RunningCli implements Cli, AsyncDisposable {
  readonly out: Output;
  readonly env: NodeJS.ProcessEnv;
  readonly connection: CommonFlags;
  readonly #abort = new AbortController();
  readonly #state: { server?: string };
  #client: Promise<DroverClient> | undefined;
  readonly #onSignal = (signal: NodeJS.Signals): void => {
    // The second one does not wait for anything to be tidy.
    if (this.#abort.signal.aborted) process.exit(interrupted);
    this.#abort.abort(new DroverError('cancelled', signal === 'SIGINT' ? 'interrupted' : 'terminated'));
  };

  constructor(out: Output, env: NodeJS.ProcessEnv, flags: CommonFlags, state: { server?: string }) {
    this.out = out;
    this.env = env;
    this.connection = flags;
    this.#state = state;
    process.on('SIGINT', this.#onSignal);
    process.on('SIGTERM', this.#onSignal);
    // Whoever read our output has gone, as `head` does: no more to say.
    for (const stream of [process.stdout, process.stderr]) {
      stream.on('error', (error: NodeJS.ErrnoException) => {
        if (error.code === 'EPIPE') process.exit(0);
      });
    }
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  takeSignals(): void {
    process.off('SIGINT', this.#onSignal);
    process.off('SIGTERM', this.#onSignal);
  }

  connect(): Promise<DroverClient> {
    this.#client ??= (async () => {
      const { connect } = await import('./context/connect.ts');
      const { client, server } = await connect(this.env, this.connection);
      this.#state.server = server;
      return client;
    })();
    return this.#client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.takeSignals();
    // One that could not be made has been reported by whoever asked for it.
    const client = await this.#client?.catch(() => undefined);
    client?.close();
  }
}
