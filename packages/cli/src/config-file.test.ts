import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { buildProgram } from './program.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-config-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

/** What a command is run with. */
async function flagsOf(file: string, ...argv: readonly string[]): Promise<Record<string, unknown>> {
  const path = join(directory, 'drover.yaml');
  await writeFile(path, file);
  let seen: Record<string, unknown> = {};
  const program = buildProgram(async (_, flags) => await Promise.resolve(void (seen = { ...flags })));
  const quiet = (command: Command): void => {
    command.exitOverride().configureOutput({ outputError: () => undefined, writeErr: () => undefined });
    command.commands.forEach(quiet);
  };
  quiet(program);
  await program.parseAsync([...argv, '--config', path], { from: 'user' });
  return seen;
}

describe('--config FILE', () => {
  test('says what the command line leaves open, by the names of the flags', async () => {
    const flags = await flagsOf('pool: 10.50.0.0/16\nlabel: [zone=north, gpu]\nlisten: 0.0.0.0:7443\nagent: false\n', 'up');
    expect(flags).toMatchObject({ pool: '10.50.0.0/16', label: ['zone=north', 'gpu'], listen: '0.0.0.0:7443', agent: false });
  });

  test('a flag on the command line wins', async () => {
    expect(await flagsOf('pool: 10.50.0.0/16\nlisten: 0.0.0.0:1\n', 'up', '--pool', '10.60.0.0/16')).toMatchObject({
      pool: '10.60.0.0/16',
      listen: '0.0.0.0:1',
    });
  });

  test.each([
    ['a name that is no flag', 'up', 'pools: 1\n', /drover\.yaml:1:8: pools: /],
    ["another command's flag", 'serve', 'pool: 10.50.0.0/16\n', /drover\.yaml:1:7: pool: /],
    ['a secret, which does not belong into it', 'up', 'token: x\n', /drover\.yaml:1:8: token: /],
    ['a list where one value is wanted', 'up', 'listen: [a, b]\n', /drover\.yaml:1:9: listen: /],
    ['a word where yes or no is wanted', 'up', 'agent: perhaps\n', /drover\.yaml:1:8: agent: /],
  ])('%s is refused with its place', async (_, command, file, message) => {
    await expect(flagsOf(file, command)).rejects.toMatchObject({ code: 'invalid-config', message: expect.stringMatching(message) });
  });
});
