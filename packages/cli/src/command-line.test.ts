import { Command } from 'commander';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { commandPath, locate, ownWords } from './command-line.ts';
import { buildProgram } from './program.ts';

const program = buildProgram(async () => undefined);

/** What the parser makes of a command line: the handler's command and arguments, and the flags. */
async function parsed(words: readonly string[]): Promise<unknown> {
  let seen: unknown;
  const fresh = buildProgram((command, flags) => {
    seen = { path: commandPath(command), args: command.args, flags };
    return Promise.resolve();
  });
  const quiet = (command: Command): void => {
    command.exitOverride().configureOutput({ outputError: () => undefined, writeErr: () => undefined, writeOut: () => undefined });
    command.commands.forEach(quiet);
  };
  quiet(fresh);
  await fresh.parseAsync([...words], { from: 'user' });
  return seen;
}

describe('flags behind IMAGE or SANDBOX belong to the command to run', () => {
  test.each([
    [['run', '--rm', 'host', 'ls', '-la', '/'], 'run', ['host', 'ls', '-la', '/'], { rm: true }],
    [['run', '-d', 'host', 'sleep', '--help'], 'run', ['host', 'sleep', '--help'], { detach: true }],
    [['run', 'alpine', '-o', 'json'], 'run', ['alpine', '-o', 'json'], {}],
    [['exec', '-t', 'web', 'ls', '-la'], 'exec', ['web', 'ls', '-la'], { tty: true }],
    [['exec', 'web', 'tail', '-n', '5', '--follow', 'x'], 'exec', ['web', 'tail', '-n', '5', '--follow', 'x'], {}],
    [['sandbox', 'create', '--rm', 'host', 'sh', '-c', 'true'], 'sandbox create', ['host', 'sh', '-c', 'true'], { rm: true }],
    [['-o', 'json', 'sandbox', 'ls'], 'sandbox ls', [], { output: 'json' }],
    [['--server', 'a', 'ps', '-a'], 'ps', [], { server: 'a', all: true }],
  ])('%j', async (words, path, args, flags) => {
    expect(await parsed(words)).toMatchObject({ path, args, flags });
  });
});

describe('where a command line stands', () => {
  test.each([
    [[], '', undefined, false],
    [['sandbox'], 'sandbox', undefined, false],
    [['sb', 'list'], 'sandbox ls', undefined, false],
    [['-o', 'json', 'ps'], 'ps', undefined, false],
    [['run', '--memory'], 'run', '--memory', false],
    [['run', '--memory', '1g'], 'run', undefined, false],
    [['run', '--memory=1g'], 'run', undefined, false],
    [['run', '-de'], 'run', '--env', false],
    [['run', '-eA=1'], 'run', undefined, false],
    [['run', 'host'], 'run', undefined, true],
    [['run', '--', 'host'], 'run', undefined, true],
    [['exec', 'web'], 'exec', undefined, true],
    [['logs', 'web'], 'logs', undefined, false],
  ])('%j', (words, path, flag, inSandboxCommand) => {
    const position = locate(program, words);
    expect([commandPath(position.command), position.option?.long, position.inSandboxCommand]).toEqual([path, flag, inSandboxCommand]);
  });

  test('words of the command to run are not Drover’s own', () => {
    fc.assert(
      fc.property(fc.array(fc.string()), (theirs) => {
        expect(ownWords(program, ['run', '-d', 'host', ...theirs])).toEqual(['run', '-d', 'host']);
      }),
    );
  });
});
