import { execFileSync, spawn, type ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { logOutputBytes } from './limits.ts';

const lines = 20_000;
const program = `
  import { createLogger } from ${JSON.stringify(new URL('./log.ts', import.meta.url).href)};
  const logger = createLogger({ name: 'test' });
  for (let i = 0; i < ${lines}; i++) logger.info({ i }, 'x'.repeat(100));
  process.stdout.write('written\\n');
  process.stdin.once('data', () => logger.info('after'));
  process.stdin.once('end', () => process.exit());`;
const argv = ['--conditions=development', '--disable-warning=ExperimentalWarning', '--input-type=module', '-e', program];

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'drover-log-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

/** Everything that the descriptor has now, and more until `enough`. */
async function drain(fd: number, enough: (text: string) => boolean): Promise<string> {
  const chunk = Buffer.alloc(65_536);
  let text = '';
  for (const end = Date.now() + 20_000; !enough(text); ) {
    if (Date.now() > end) throw new Error(`never enough: ${text.slice(-300)}`);
    try {
      const length = readSync(fd, chunk);
      text += chunk.toString('utf8', 0, length);
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 10)); // EAGAIN: empty
    }
  }
  return text;
}

describe('a server never waits for its log', () => {
  test('a pipe that is not read holds nothing up; its reader later learns how many lines it missed', async () => {
    const fifo = join(directory, 'fifo');
    execFileSync('mkfifo', [fifo]);
    const reader = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
    const writer = openSync(fifo, constants.O_WRONLY);
    const child = spawn(process.execPath, argv, { stdio: ['pipe', 'pipe', writer] }) as ChildProcessByStdio<Writable, Readable, null>;
    closeSync(writer);
    await once(child.stdout, 'data');
    const first = await drain(reader, (text) => text.includes('were dropped'));
    child.stdin.write('go on\n');
    const text = first + (await drain(reader, (more) => more.includes('"after"')));
    child.stdin.end();
    await once(child, 'close');
    closeSync(reader);
    const entries = text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as { i?: number; msg: string });
    const kept = entries.filter(({ i }) => i !== undefined);
    // Whole lines in order from the first on, bounded, and the number of the others.
    expect(kept.map(({ i }) => i)).toEqual(kept.map((_, i) => i));
    expect(text.length).toBeLessThan(logOutputBytes + 1_100_000);
    expect(entries.find(({ msg }) => msg.includes('were dropped'))?.msg).toMatch(
      new RegExp(`^${lines - kept.length} log lines were dropped`),
    );
  });

  test('a socket that is not read holds nothing up', async () => {
    // Node.js makes the pipes of its children from sockets.
    const child = spawn(process.execPath, argv, { stdio: ['pipe', 'pipe', 'pipe'] });
    child.stderr.pause();
    await once(child.stdout, 'data');
    const all = buffer(child.stderr);
    child.stdin.end();
    await once(child, 'close');
    expect((await all).toString().split('\n')[0]).toContain('"i":0');
  });

  test('a reader that is gone ends nothing', async () => {
    const child = spawn('sh', ['-c', '"$0" "$@" 2>&1 >&3 | true', process.execPath, ...argv], {
      stdio: ['pipe', 'pipe', 'inherit', 'pipe'],
    }) as ChildProcessByStdio<Writable, Readable, null>;
    const written = child.stdio[3] as NodeJS.ReadableStream;
    await once(written, 'data');
    child.stdin.end();
    expect(await once(child, 'close')).toEqual([0, null]);
  });

  test('a full disk ends nothing', async () => {
    const child = spawn('sh', ['-c', '"$0" "$@" 2>/dev/full', process.execPath, ...argv], { stdio: ['pipe', 'pipe', 'inherit'] });
    await once(child.stdout, 'data');
    child.stdin.end();
    expect(await once(child, 'close')).toEqual([0, null]);
  });
});
