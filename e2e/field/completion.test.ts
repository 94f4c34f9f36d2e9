import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { repository, Terminal, TestDrover } from '../harness/index.ts';

let drover: TestDrover;
/** The working directory of the shells. It holds a file that must not change, and a program that must not run. */
let here: string;

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.237.0.0/18', '--name', 'near']);
  await drover.create('web', ['sleep', '1000']);
  here = drover.directory;
}, 120_000);

afterAll(async () => {
  await drover?.[Symbol.asyncDispose]();
});

beforeEach(async () => {
  await writeFile(join(here, 'important.txt'), 'important\n');
  await writeFile(join(here, 'drover'), '#!/bin/sh\ntouch touched\n');
  await chmod(join(here, 'drover'), 0o755);
});

afterEach(async () => {
  expect(existsSync(join(here, 'touched'))).toBe(false);
  expect(await readFile(join(here, 'important.txt'), 'utf8')).toBe('important\n');
});

/** A typed line up to the cursor, and the completion of its last word. Evaluating a word would have a visible effect. */
const lines: readonly (readonly [line: string, completed: string])[] = [
  ['drover sandbo', 'sandbox'],
  ['drover sandbox contai', 'contain'],
  ['drover run --memor', '--memory'],
  ['drover exec we', 'web'],
  ['./drover exec we', 'web'],
  ['drover run --host nea', 'near'],
  ['drover logs web > important.txt --tai', '--tail'],
  ['drover logs $(touch touched) --tai', '--tail'],
  ['drover logs `touch touched` --tai', '--tail'],
  ['drover logs "$(touch touched)" --tai', '--tail'],
  ["drover logs 'a;touch touched' --tai", '--tail'],
  ['drover run --env-file importan', 'important.txt'],
  ['drover cp importan', 'important.txt'],
  ['drover help sandbo', 'sandbox'],
  ['drover help sandbox contai', 'contain'],
  ['drover sandbox help contai', 'contain'],
  ['drover events --kind sessio', 'session'],
];

describe.each([
  { program: 'bash', args: ['--norc', '--noprofile', '-i'] },
  { program: 'zsh', args: ['-f', '-i'] },
])('completion in $program, at a terminal', ({ program, args }) => {
  let terminal: Terminal;
  /** The output of loading the script. */
  let loaded = '';
  let commands = 0;

  /** Runs a command and waits for its end. */
  const run = async (command: string): Promise<void> => {
    const end = `end${++commands}`;
    const from = terminal.output.length;
    // The quotes distinguish the echo of the typed text from the printed text.
    terminal.type(`${command}echo en''d${commands}\r`);
    await terminal.shows(new RegExp(`${end}\\b`), from);
  };

  beforeAll(async () => {
    const path = `${repository}:${process.env['PATH'] ?? ''}`;
    terminal = new Terminal(drover, args, { columns: 200, rows: 50 }, { program, cwd: here, env: { PATH: path, HOME: here, PS1: '> ' } });
    const load = `source <(drover completion ${program}); `;
    // Twice, because a shell started in a shell loads the script again.
    await run(`${load}${load}`);
    loaded = terminal.output;
  }, 60_000);

  afterAll(() => terminal?.[Symbol.dispose]());

  test('the script prints nothing when it is loaded twice', () => expect(loaded).not.toMatch(/error|not found/i));

  // After a backquote bash completes a command itself, and calls no completion program.
  const asked = lines.filter(([line]) => program !== 'bash' || !line.includes('`'));

  test.each(asked)('%s becomes %s, and no word of the line is evaluated', async (line, completed) => {
    const from = terminal.output.length;
    terminal.type(`${line}\t`);
    await terminal.shows(completed, from);
    // Ctrl-U deletes the line without running it.
    await run('\u0015');
  });
});

test('completion in fish: every line is completed, and no word of it is evaluated', async () => {
  const script = 'drover completion fish | source; drover completion fish | source; for line in $argv; complete -C $line; echo; end';
  const env = { ...drover.environment, PATH: `${repository}:${process.env['PATH'] ?? ''}`, HOME: here };
  const { stdout, stderr } = await execa('fish', ['--no-config', '-c', script, ...lines.map(([line]) => line)], { cwd: here, env });
  expect(stderr).toBe('');
  const offered = stdout
    .trimEnd()
    .split('\n\n')
    .map((block) => block.split('\n').map((candidate) => candidate.split('\t')[0]));
  for (const [index, [line, completed]] of lines.entries())
    expect({ line, offered: offered[index] }).toEqual({ line, offered: [completed] });
});

test('a control plane that does not respond does not block the shell', async () => {
  const mute = createServer(() => undefined).listen(0, '127.0.0.1');
  await once(mute, 'listening');
  try {
    const { port } = mute.address() as AddressInfo;
    const env = { DROVER_SERVER: `https://127.0.0.1:${port}`, DROVER_TOKEN: 'x' };
    const names = await drover.run(['complete', 'words', 'exec', 'we'], { env, timeoutMs: 20_000 });
    expect(names).toEqual({ code: 0, stdout: '', stderr: '' });
    const commands = await drover.run(['complete', 'words', 'sandbo'], { env });
    expect(commands.stdout).toMatch(/^sandbox\t/);
  } finally {
    mute.close();
  }
});

test('a name that a shell would expand is not offered', async () => {
  const odd = join(here, 'a$(touch touched)');
  await execa('cp', ['-r', '/etc/apt', odd]);
  try {
    await drover.create('odd', ['/bin/true'], { image: `dir:${odd}` });
    const { stdout } = await drover.run(['complete', 'words', 'run', '']);
    expect(stdout).toMatch(/^host\t/);
    expect(stdout).not.toContain('touch');
  } finally {
    await rm(odd, { recursive: true });
  }
});
