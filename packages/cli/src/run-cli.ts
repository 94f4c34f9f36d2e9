import { constants } from 'node:os';
import { isatty } from 'node:tty';
import { CommanderError, type Command } from 'commander';
import { DroverError, errnoOf, hasCode, reasonOf } from '@drover/foundation';
import type { DroverClient } from '@drover/sdk';
import { requireText } from './arguments.ts';
import type { Cli, ConnectionFlags } from './cli.ts';
import { commandPath, helpQuestion, locate, ownWords } from './command-line.ts';
import { dockerHint } from './docker/index.ts';
import { Output } from './output/index.ts';
import { reconnectNoteMs, waitNoteAfterMs, waitNoteGapMs } from './limits.ts';
import { buildProgram } from './program.ts';
import type { CommonFlags, Run } from './definition.ts';

/** Commands that return the status of the command that they ran. */
const wrappers = new Set(['run', 'exec', 'attach']);

/** Runs one command line and returns the exit status. Prints every error, so that no command has to. */
export async function runCli(argv: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<number> {
  // Installed first, since help is printed before any command runs.
  for (const stream of [process.stdout, process.stderr]) {
    if (!stream.listeners('error').includes(endOnBrokenPipe)) stream.on('error', endOnBrokenPipe);
  }
  let status: number | undefined;
  const state: State = {};
  const out = (json: boolean): Output =>
    new Output({
      json,
      stdout: process.stdout,
      stderr: process.stderr,
      interactive: isatty(2) && env['CI'] === undefined,
    });
  const run: Run = async (command, flags, work) => {
    state.command = command;
    // `inspect` prints JSON by default, but its errors as text.
    state.json = flags.output === 'json' && command.getOptionValueSource('output') !== 'default';
    // cp passes file names on as bytes.
    if (command.name() !== 'cp') requireText(argv);
    await using cli = new RunningCli(out(flags.output === 'json'), env, flags, state);
    status = (await work(cli)) ?? 0;
  };
  const program = buildProgram(run, argv);
  try {
    if (argv[0] === 'complete') return await (await import('./completion/complete.ts')).complete(program, argv.slice(1), env);
    // Internal: the agent starts the gateway, and the gateway its daemons.
    if (argv[0] === 'gateway' || argv[0] === 'gateway-daemon')
      return await (await import('@drover/gateway/main')).gatewayPrograms[argv[0]](argv.slice(1));
    for (const command of [program, ...walk(program)]) {
      command.exitOverride((error) => {
        state.command = command;
        throw error;
      });
      // runCli prints the errors.
      command.configureOutput({ outputError: () => undefined, writeErr: () => undefined });
    }
    if (argv.length === 0) {
      program.outputHelp();
      return 0;
    }
    const question = helpQuestion(program, argv);
    if (question !== undefined && question.unknown === undefined) {
      question.command.outputHelp();
      return 0;
    }
    // Without the word `help`, the parser refuses the unknown command and suggests a similar one.
    const unknownCommand = question && [...commandPath(question.command).split(' ').filter(Boolean), question.unknown ?? ''];
    await program.parseAsync([...(unknownCommand ?? argv)], { from: 'user' });
    return status ?? Number(process.exitCode ?? 0);
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return 0;
    const own = ownWords(program, argv);
    const command = state.command ?? program;
    const error = await inContext(explain(thrown, command), env, state.connected);
    out(state.json ?? wantsJson(own)).error(error);
    if (isInterrupted(error) && state.signal !== undefined) return 128 + constants.signals[state.signal];
    // Even if the line could not be parsed, its words name the command.
    if (isWrapper(command) || isWrapper(locate(program, own).command)) return (await import('./attach.ts')).wrapperStatus(error);
    return error.exitCode;
  }
}

/** Facts about a command line that are known only while it runs. */
interface State {
  command?: Command;
  json?: boolean;
  /** Its connection flags, once it has connected. */
  connected?: ConnectionFlags;
  /** The signal that interrupted it. */
  signal?: NodeJS.Signals;
}

/** Whether a command returns the status of a command in a sandbox. Its own failures are then 125, as in docker. */
function isWrapper(command: Command): boolean {
  return wrappers.has(commandPath(command));
}

function isInterrupted(error: DroverError): boolean {
  return hasCode(error, 'cancelled');
}

function* walk(command: Command): Generator<Command> {
  for (const inner of command.commands) {
    yield inner;
    yield* walk(inner);
  }
}

/** The output format for errors that occur before the flags are parsed. */
function wantsJson(words: readonly string[]): boolean {
  return words.some(
    (word, i) => word === '-ojson' || word === '--output=json' || ((word === '-o' || word === '--output') && words[i + 1] === 'json'),
  );
}

/** Turns anything thrown into an error with a sentence and a hint. */
function explain(thrown: unknown, command: Command): DroverError {
  if (thrown instanceof CommanderError) return usageError(thrown, command);
  const error = DroverError.from(thrown);
  if (error === thrown || !(thrown instanceof Error) || errnoOf(thrown) === undefined) return error;
  // The error concerns a file or address of the user, so the sentence names it.
  const { path } = thrown as NodeJS.ErrnoException;
  const subject = path === undefined ? '' : `${path}: `;
  return new DroverError(error.code, `${subject}${reasonOf(thrown)}`, {
    hint: error.hint ?? 'check the names on the command line; if they are right, this is a defect of Drover to report',
    cause: thrown,
  });
}

/** Adds which of several control planes could not be reached. */
async function inContext(thrown: DroverError, env: NodeJS.ProcessEnv, flags: ConnectionFlags | undefined): Promise<DroverError> {
  if (flags === undefined || !hasCode(thrown, 'control-plane-unreachable')) return thrown;
  const { withContextName } = await import('./context/context.ts');
  // The error matters more than contexts that cannot be read.
  return await withContextName(thrown, env, flags).catch(() => thrown);
}

/** Commander's `error: unknown option '--x'\n(Did you mean --y?)` as a sentence and a hint. */
function usageError(error: CommanderError, command: Command): DroverError {
  const path = commandPath(command);
  const called = path === '' ? 'drover' : `drover ${path}`;
  if (error.code === 'commander.help') {
    return new DroverError('invalid-argument', `${called} needs a subcommand`, {
      hint: `${called} --help lists them`,
      cause: error,
    });
  }
  const [first = '', ...rest] = error.message.replace(/^error: /, '').split('\n');
  const suggestion = /\(?(Did you mean .*\?)\)?/.exec(rest.join(' '))?.[1];
  const hint = dockerHint(path, first) ?? suggestion ?? `${called} --help lists the commands and flags`;
  return new DroverError('invalid-argument', first, { hint, cause: error });
}

/** Exits if the reader of the output has exited, as `head` does. */
function endOnBrokenPipe(error: NodeJS.ErrnoException): void {
  if (error.code === 'EPIPE') process.exit(0);
}

/** Returns a listener that notes what a command waits for: after a short wait, then once per interval. */
function waitNotes(out: Output): (error: DroverError) => void {
  let [since, last, noted] = [0, Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY];
  return (error) => {
    const now = performance.now();
    if (now - last > waitNoteGapMs) since = now;
    last = now;
    if (now - since < waitNoteAfterMs || now - noted < reconnectNoteMs) return;
    noted = now;
    out.note(`waiting for the control plane: ${error.message}`);
  };
}

const endingSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** A running command: its signals and its connection. */
class RunningCli implements Cli, AsyncDisposable {
  readonly out: Output;
  readonly env: NodeJS.ProcessEnv;
  readonly connection: CommonFlags;
  readonly #abort = new AbortController();
  readonly #state: State;
  #client: Promise<DroverClient> | undefined;
  readonly #onSignal = (signal: NodeJS.Signals): void => {
    this.#state.signal = signal;
    // A second signal does not wait for cleanup.
    if (this.#abort.signal.aborted) process.exit(128 + constants.signals[signal]);
    this.#abort.abort(new DroverError('cancelled', signal === 'SIGINT' ? 'interrupted' : `ended by ${signal}`));
  };

  constructor(out: Output, env: NodeJS.ProcessEnv, flags: CommonFlags, state: State) {
    this.out = out;
    this.env = env;
    this.connection = flags;
    this.#state = state;
    for (const signal of endingSignals) process.on(signal, this.#onSignal);
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  takeSignals(): void {
    for (const signal of endingSignals) process.off(signal, this.#onSignal);
  }

  connect(): Promise<DroverClient> {
    this.#state.connected = this.connection;
    this.#client ??= (async () => {
      const { connect } = await import('./context/connect.ts');
      return await connect(this.env, this.connection, waitNotes(this.out));
    })();
    return this.#client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.takeSignals();
    // The command has reported a failed connection.
    const client = await this.#client?.catch(() => undefined);
    client?.close();
  }
}
