import { Command } from 'commander';
import { version } from '@drover/foundation';
import {
  defineContextCommands,
  defineEventCommands,
  defineHostCommands,
  defineIdentityCommands,
  defineImageCommands,
  defineMachineCommands,
  defineProgramCommands,
  defineSandboxCommands,
  defineVolumeCommands,
} from './commands/index.ts';
import { defineDockerCommands } from './docker/index.ts';
import { addCommonFlags, Definition, type Run } from './definition.ts';

/**
 * The command line: names, flags and help. Each group of commands defines its own, beside its handlers.
 * @param argv the command line that the program will parse
 */
export function buildProgram(run: Run, argv: readonly string[] = []): Command {
  const program = new Command('drover')
    .description('Runs fleets of sandboxes on machines that you own.')
    .version(version, '-V, --version', 'show the version of this program')
    .helpOption('-h, --help', 'show this help')
    .helpCommand('help [command]', 'show the help of a command')
    .showHelpAfterError(false)
    .showSuggestionAfterError(true)
    // Flags after `agent join` are join's, though `agent` has --state, --token and others too. Every command inherits this.
    .enablePositionalOptions()
    .addHelpText('after', exitStatusHelp);
  addCommonFlags(program);
  const definition = new Definition(program, run);
  program.commandsGroup('This machine:');
  defineMachineCommands(definition);
  defineProgramCommands(definition);
  defineContextCommands(definition);
  program.commandsGroup('Sandboxes:');
  defineSandboxCommands(definition, argv);
  program.commandsGroup('Fleet:');
  defineHostCommands(definition);
  defineImageCommands(definition);
  defineVolumeCommands(definition);
  defineIdentityCommands(definition);
  defineEventCommands(definition);
  program.commandsGroup('Under the names of docker:');
  defineDockerCommands(definition);
  return program;
}

const exitStatusHelp = `
First:   drover up
Then:    drover run host -- sh

Exit status:
  0: success, 2: invalid input, 3: not found, 4: conflict, 5: permission denied, 6: unavailable, 7: out of capacity, 8: timed out,
  130: interrupted, 1: any other failure
run, exec, attach and sandbox wait exit with the status of the sandbox's command. For run, exec and attach, 125: Drover failed, 126: the
command cannot be executed, 127: the command does not exist.
`;
