import type { Argument, Command, Option } from 'commander';
import { commandPath, helpQuestion, locate, type HelpQuestion, type Position } from '../command-line.ts';
import { splitBashLine } from './bash-line.ts';
import { namesOf, type Candidate, type NameKind } from './names.ts';

/** The completions at the cursor: words, whether file names fit as well, and whether no space follows the word. */
interface Completions {
  readonly candidates: readonly Candidate[];
  readonly files?: boolean;
  readonly noSpace?: boolean;
}

/**
 * Implements `drover complete bash LINE BREAKS` and `drover complete words WORD…`, which the scripts of `drover completion` call. The last
 * word is the word at the cursor. Prints `value TAB description` lines, `:files` if the shell should offer files, and `:nospace` if no
 * space follows the value.
 */
export async function complete(program: Command, [mode, ...args]: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const line =
    mode === 'bash' ? splitBashLine(args[0] ?? '', args[1] ?? '') : { words: args.slice(0, -1), current: args.at(-1) ?? '', kept: 0 };
  const question = helpQuestion(program, line.words);
  const completions = question === undefined ? await completionsAt(locate(program, line.words), line.current, env) : commandsOf(question);
  const lines = completions.candidates
    .filter(({ value }) => value.startsWith(line.current) && isPlain(value))
    .map(({ value, description }) => `${value.slice(line.kept)}\t${printable(description)}`);
  if (completions.files === true) lines.push(':files');
  if (completions.noSpace === true) lines.push(':nospace');
  if (lines.length > 0) process.stdout.write(`${lines.join('\n')}\n`);
  return 0;
}

/** The words that can follow `help`. */
function commandsOf({ command, unknown }: HelpQuestion): Completions {
  return { candidates: unknown === undefined ? subcommandsOf(command) : [] };
}

function subcommandsOf(command: Command): Candidate[] {
  return command.commands.map((inner) => ({ value: inner.name(), description: inner.description() }));
}

/** Whether a shell inserts the value without quoting it. Other values are not offered. */
function isPlain(value: string): boolean {
  return /^[A-Za-z0-9@%_+=:,./-]+$/.test(value);
}

function printable(description: string): string {
  return description.replace(/\p{Cc}+/gu, ' ').trim();
}

async function completionsAt(position: Position, current: string, env: NodeJS.ProcessEnv): Promise<Completions> {
  const { command, option, operands, flagsEnded, inSandboxCommand } = position;
  if (inSandboxCommand) return { candidates: [] };
  if (option !== undefined) return await valuesOf(option, env);
  if (!flagsEnded && current.startsWith('-')) {
    const [, name, value] = /^(--[^=]+)=(.*)$/s.exec(current) ?? [];
    const named = name === undefined ? undefined : command.options.find(({ long }) => long === name);
    if (named === undefined || value === undefined) return { candidates: flagsOf(command) };
    const completions = await valuesOf(named, env);
    return {
      ...completions,
      candidates: completions.candidates.map((candidate) => ({ ...candidate, value: `${name}=${candidate.value}` })),
    };
  }
  const own = operands.length === 0 ? subcommandsOf(command) : [];
  if (command.parent === null) own.push({ value: 'help', description: 'show the help of a command' });
  const argument = argumentAt(command, operands.length);
  if (argument === undefined) return { candidates: own };
  const completions = await argumentValues(command, argument, { current, operands }, env);
  return { ...completions, candidates: [...own, ...completions.candidates] };
}

function argumentAt(command: Command, index: number): Argument | undefined {
  const last = command.registeredArguments.at(-1);
  return command.registeredArguments[index] ?? (last?.variadic === true ? last : undefined);
}

function flagsOf(command: Command): Candidate[] {
  return command
    .createHelp()
    .visibleOptions(command)
    .flatMap((option) => (option.long === undefined ? [] : [{ value: option.long, description: option.description }]));
}

/** The names that the placeholders of arguments and flags stand for. */
const namesByPlaceholder: Readonly<Record<string, NameKind>> = {
  sandbox: 'sandboxes',
  exec: 'execs',
  host: 'hosts',
  identity: 'identities',
  image: 'images',
  volume: 'volumes',
  context: 'contexts',
};
const filePlaceholders = new Set(['file', 'directory', 'path', 'program', 'source:target[:ro]']);

async function valuesOf(option: Option, env: NodeJS.ProcessEnv): Promise<Completions> {
  const choices = option.argChoices ?? [];
  if (choices.length > 0) return { candidates: choices.map((value) => ({ value, description: '' })) };
  const placeholder = /[<[](.+)[\]>]$/.exec(option.flags)?.[1] ?? '';
  if (filePlaceholders.has(placeholder)) return { candidates: [], files: true };
  const kind = option.long === '--network' || option.long === '--allow' ? undefined : namesByPlaceholder[placeholder];
  return { candidates: kind === undefined ? [] : await namesOf(kind, env) };
}

async function argumentValues(
  command: Command,
  argument: Argument,
  { current, operands }: { readonly current: string; readonly operands: readonly string[] },
  env: NodeJS.ProcessEnv,
): Promise<Completions> {
  const path = commandPath(command);
  if (path === 'cp') return await placesOf(current, env);
  if (path === 'completion') return { candidates: ['bash', 'zsh', 'fish'].map((value) => ({ value, description: '' })) };
  const kind = namesByPlaceholder[argument.name()];
  if (kind === undefined) return { candidates: [] };
  const candidates = await namesOf(kind, env, operands);
  // An image can also be an archive or a directory: `oci-archive:PATH`.
  return kind === 'images' && /^[./]/.test(current) ? { candidates, files: true } : { candidates };
}

/** For cp: `SANDBOX:`, or a local file. */
async function placesOf(current: string, env: NodeJS.ProcessEnv): Promise<Completions> {
  if (/^\.{0,2}\//.test(current)) return { candidates: [], files: true };
  const sandboxes = await namesOf('sandboxes', env);
  const places = sandboxes.map(({ value, description }) => ({ value: `${value}:`, description }));
  const matches = places.some(({ value }) => value.startsWith(current));
  return { candidates: places, files: true, noSpace: matches };
}
