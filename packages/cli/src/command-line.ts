import type { Command, Option } from 'commander';
import { takesCommand } from './definition.ts';

/** The state of parsing after some words of a command line. */
export interface Position {
  /** The innermost command that the words name. */
  readonly command: Command;
  /** The flag whose value is the next word. */
  readonly option: Option | undefined;
  /** Arguments of `command` so far. */
  readonly operands: readonly string[];
  /** Whether `--` has ended the flags. */
  readonly flagsEnded: boolean;
  /** Whether the next word belongs to the command to run in the sandbox. */
  readonly inSandboxCommand: boolean;
}

/** Follows the parser's rules without running anything. Unknown flags count as switches. */
export function locate(program: Command, words: readonly string[]): Position {
  let command = program;
  let option: Option | undefined;
  let operands: readonly string[] = [];
  let flagsEnded = false;
  const inSandboxCommand = (): boolean => takesCommand(command) && operands.length >= command.registeredArguments.length - 1;
  for (const word of words) {
    if (inSandboxCommand()) break;
    if (option !== undefined) {
      option = undefined;
    } else if (!flagsEnded && word === '--') {
      flagsEnded = true;
    } else if (!flagsEnded && word.startsWith('-') && word.length > 1) {
      option = flagAwaitingValue(command, word);
    } else {
      const inner = operands.length === 0 && !flagsEnded ? subcommand(command, word) : undefined;
      if (inner === undefined) operands = [...operands, word];
      else command = inner;
    }
  }
  return { command, option, operands, flagsEnded, inSandboxCommand: inSandboxCommand() };
}

/** The subject of `help`: the innermost command that its words name, and the first word that names no subcommand of it. */
export interface HelpQuestion {
  readonly command: Command;
  readonly unknown: string | undefined;
}

/** Parses `drover help sandbox create` and `drover sandbox help create`. @returns undefined for other lines */
export function helpQuestion(program: Command, words: readonly string[]): HelpQuestion | undefined {
  const at = words.findIndex((word, i) => word === 'help' && mayNameCommand(locate(program, words.slice(0, i))));
  if (at < 0) return undefined;
  let { command } = locate(program, words.slice(0, at));
  for (const word of words.slice(at + 1)) {
    if (word.startsWith('-')) break;
    const inner = subcommand(command, word);
    if (inner === undefined) return { command, unknown: command.commands.length > 0 && !takesCommand(command) ? word : undefined };
    command = inner;
  }
  return { command, unknown: undefined };
}

function mayNameCommand({ command, option, operands, flagsEnded }: Position): boolean {
  return command.commands.length > 0 && !takesCommand(command) && option === undefined && operands.length === 0 && !flagsEnded;
}

/** The words of the line without the command to run in a sandbox. */
export function ownWords(program: Command, words: readonly string[]): readonly string[] {
  const end = words.findIndex((_, count) => locate(program, words.slice(0, count)).inSandboxCommand);
  return end < 0 ? words : words.slice(0, end);
}

/** A command's path, such as `sandbox ls`; empty for the program itself. */
export function commandPath(command: Command): string {
  const outer = command.parent === null ? '' : commandPath(command.parent);
  return command.parent === null ? '' : `${outer} ${command.name()}`.trim();
}

export function subcommand(command: Command, name: string): Command | undefined {
  return command.commands.find((inner) => inner.name() === name || inner.aliases().includes(name));
}

/** The flag in `--name`, `-n` or a group such as `-dn` whose value is the next word. */
function flagAwaitingValue(command: Command, word: string): Option | undefined {
  if (word.startsWith('--')) {
    const option = command.options.find(({ long }) => long === word);
    return option?.required === true ? option : undefined;
  }
  for (let at = 1; at < word.length; at++) {
    const option = command.options.find(({ short }) => short === `-${word[at]}`);
    // If the flag takes a value, the rest of the word is that value.
    if (option?.required === true) return at === word.length - 1 ? option : undefined;
    if (option === undefined) return undefined;
  }
  return undefined;
}
