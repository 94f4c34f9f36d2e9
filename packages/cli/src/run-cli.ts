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

/** Commands that end with the status of the command that they ran. */
const wrappers = new Set(['run', 'exec', 'attach']);

/** Runs one command line and gives the exit status. Everything that goes wrong is said here, in one place. */
export async function runCli(argv: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<number> {
  // Help is written too, before any command runs.
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
    // `inspect` prints JSON without being asked to; its errors are for people all the same.
    state.json = flags.output === 'json' && command.getOptionValueSource('output') !== 'default';
    // It takes the bytes of file names.
    if (command.name() !== 'cp') requireText(argv);
    await using cli = new RunningCli(out(flags.output === 'json'), env, flags, state);
    status = (await work(cli)) ?? 0;
  };
  const program = buildProgram(run, argv);
  try {
    if (argv[0] === 'complete') return await (await import('./completion/complete.ts')).complete(program, argv.slice(1), env);
    // Internal: its arguments are between the agent and the gateway.
    if (argv[0] === 'gateway') return await (await import('@drover/gateway')).gatewayMain(argv.slice(1));
    for (const command of [program, ...walk(program)]) {
      command.exitOverride((error) => {
        state.command = command;
        throw error;
      });
      // Errors are said by us, in one place.
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
    // Of a line that could not be parsed, too: the words name the command.
    if (isWrapper(command) || isWrapper(locate(program, own).command)) return (await import('./attach.ts')).wrapperStatus(error);
    return error.exitCode;
  }
}

/** What became known of a command line while it was run. */
interface State {
  command?: Command;
  json?: boolean;
  /** The flags of its connection, once it has asked for one. */
  connected?: ConnectionFlags;
  /** The signal that interrupted it. */
  signal?: NodeJS.Signals;
}

/** Whether a command's status is that of a command in a sandbox: what Drover could not do is 125 there, as with docker. */
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

/** An error before the flags are parsed has a format too. */
function wantsJson(words: readonly string[]): boolean {
  return words.some(
    (word, i) => word === '-ojson' || word === '--output=json' || ((word === '-o' || word === '--output') && words[i + 1] === 'json'),
  );
}

/** The sentence for a person. */
function explain(thrown: unknown, command: Command): DroverError {
  if (thrown instanceof CommanderError) return usageError(thrown, command);
  const error = DroverError.from(thrown);
  if (error === thrown || !(thrown instanceof Error) || errnoOf(thrown) === undefined) return error;
  // A file or an address of the person's own, which the sentence has to name.
  const { path } = thrown as NodeJS.ErrnoException;
  const subject = path === undefined ? '' : `${path}: `;
  return new DroverError(error.code, `${subject}${reasonOf(thrown)}`, {
    hint: error.hint ?? 'check the names on the command line; if they are right, this is a defect of Drover to report',
    cause: thrown,
  });
}

/** Which of several control planes could not be reached. */
async function inContext(thrown: DroverError, env: NodeJS.ProcessEnv, flags: ConnectionFlags | undefined): Promise<DroverError> {
  if (flags === undefined || !hasCode(thrown, 'control-plane-unreachable')) return thrown;
  const { withContextName } = await import('./context/context.ts');
  // Contexts that cannot be read now are of less importance than the error.
  return await withContextName(thrown, env, flags).catch(() => thrown);
}

/** Commander's `error: unknown option '--x'\n(Did you mean --y?)` as a sentence and a hint. */
function usageError(error: CommanderError, command: Command): DroverError {
  const path = commandPath(command);
  const called = path === '' ? 'drover' : `drover ${path}`;
  if (error.code === 'commander.help') {
    return new DroverError('invalid-argument', `${called} needs a command of its own`, {
      hint: `${called} --help lists them`,
      cause: error,
    });
  }
  const [first = '', ...rest] = error.message.replace(/^error: /, '').split('\n');
  const suggestion = /\(?(Did you mean .*\?)\)?/.exec(rest.join(' '))?.[1];
  const hint = dockerHint(path, first) ?? suggestion ?? `${called} --help lists what there is`;
  return new DroverError('invalid-argument', first, { hint, cause: error });
}

/** The reader of the output has ended, as `head` does: there is no more to do. */
function endOnBrokenPipe(error: NodeJS.ErrnoException): void {
  if (error.code === 'EPIPE') process.exit(0);
}

/** Says what a command waits for: when it has waited for a while, and again after a longer one. */
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

/** One command's life: its signals and its connection. */
class RunningCli implements Cli, AsyncDisposable {
  readonly out: Output;
  readonly env: NodeJS.ProcessEnv;
  readonly connection: CommonFlags;
  readonly #abort = new AbortController();
  readonly #state: State;
  #client: Promise<DroverClient> | undefined;
  readonly #onSignal = (signal: NodeJS.Signals): void => {
    this.#state.signal = signal;
    // The second one does not wait for the cleanup.
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
    // One that could not be made has been reported by whoever asked for it.
    const client = await this.#client?.catch(() => undefined);
    client?.close();
  }
}
