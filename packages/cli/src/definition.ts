import { Command, Option } from 'commander';
import type { Cli, ConnectionFlags, Handler } from './cli.ts';

/** Runs a handler with the flags of the command line. */
export type Run = (command: Command, flags: CommonFlags, work: (cli: Cli) => Promise<number | void>) => Promise<void>;

export interface CommonFlags extends ConnectionFlags {
  readonly output?: string;
}

/** Collects the values of a repeatable flag. */
export function collect(value: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), value];
}

/** Adds the flags that every command has. They may also stand before the command: `drover -o json sandbox ls`. */
export function addCommonFlags(command: Command): Command {
  return command
    .optionsGroup('Output and connection:')
    .addOption(new Option('-o, --output <format>', 'output format').choices(['text', 'json']))
    .addOption(new Option('--context <context>', 'use the control plane of this context (DROVER_CONTEXT); see drover context ls'))
    .addOption(new Option('--server <url>', "the control plane's URL (DROVER_SERVER)"))
    .addOption(new Option('--token <token>', 'the API token (DROVER_TOKEN)'))
    .addOption(new Option('--ca <file>', "the control plane's CA certificate, PEM (DROVER_CA)"))
    .optionsGroup('Options:');
}

/** Whether the last argument of a command is a command to run in a sandbox, which may have flags of its own. */
export function takesCommand(command: Command): boolean {
  return command.registeredArguments.at(-1)?.name() === 'command';
}

/** Defines commands: names, flags and help. A handler's module is loaded when its command runs, so that every command starts quickly. */
export class Definition {
  readonly program: Command;
  readonly #run: Run;

  constructor(program: Command, run: Run) {
    this.program = program;
    this.#run = run;
  }

  /** A group of subcommands, such as `sandbox`. */
  group(name: string, description: string): Command {
    return this.program.command(name).description(description);
  }

  /**
   * A command.
   * @param usage its name and arguments, such as `get <sandbox>`
   * @param load loads the handler
   * @param flags adds the command's own flags
   */
  command<A extends readonly unknown[], O>(
    parent: Command,
    usage: string,
    description: string,
    load: () => Promise<Handler<A, O>>,
    flags: (command: Command) => Command = (command) => command,
  ): Command {
    const command = flags(parent.command(usage).description(description));
    return (
      addCommonFlags(command)
        // As in docker, the words after IMAGE or SANDBOX belong to the command that runs in the sandbox.
        .passThroughOptions(takesCommand(command))
        .action(async (...all: unknown[]) => {
          const { config } = command.opts<{ config?: string }>();
          if (config !== undefined) await (await import('./config-file.ts')).applyConfigFile(command, config);
          const values = all.slice(0, command.registeredArguments.length) as unknown as A;
          const options: CommonFlags = { ...this.program.opts<CommonFlags>(), ...command.opts<CommonFlags>() };
          await this.#run(command, options, async (cli) => (await load())(cli, values, options as O));
        })
    );
  }
}
