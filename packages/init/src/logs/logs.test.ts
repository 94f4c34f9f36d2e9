import { execFileSync } from 'node:child_process';
import { appendFile, mkdtemp, rm, stat, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { readLog } from './reader.ts';
import { LogWriter } from './writer.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-log-'));
});
afterEach(async () => await rm(directory, { recursive: true }));

async function write(writer: LogWriter, text: string): Promise<void> {
  if (!writer.write(false, Buffer.from(text))) await new Promise<void>((resolve) => writer.onDrain(resolve));
}

interface Wanted {
  readonly tailLines?: number;
  readonly sinceMs?: number;
  readonly follow?: LogWriter;
  readonly writer?: LogWriter;
}

/** The output, with `<N>` where N bytes of it are missing. */
async function read(options: Wanted = {}): Promise<string> {
  let text = '';
  const entries = readLog({
    directory,
    tailLines: options.tailLines ?? 0,
    signal: new AbortController().signal,
    sinceMs: options.sinceMs ?? 0,
    ...(options.follow && { follow: options.follow }),
    ...(options.writer && { writer: options.writer }),
  });
  for await (const { data, droppedBytes } of entries) text += droppedBytes > 0 ? `<${droppedBytes}>` : data.toString();
  return text;
}

it('is rotated at its size, and never exceeds twice that', async () => {
  const writer = new LogWriter({ directory, maxBytes: 20_000 });
  for (let i = 0; i < 500; i++) {
    await write(writer, `line ${i} ${'x'.repeat(80)}\n`);
    if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await writer.close();
  expect(writer.generation).toBeGreaterThan(1);
  for (const name of ['log', 'log.1']) expect((await stat(join(directory, name))).size).toBeLessThanOrEqual(20_000);
  const text = await read();
  expect(text.endsWith(`line 499 ${'x'.repeat(80)}\n`)).toBe(true);
  // All that was written is there or counted.
  const written = Array.from({ length: 500 }, (_, i) => `line ${i} ${'x'.repeat(80)}\n`).join('').length;
  const [, gap = '0', kept = ''] = /^<(\d+)>(.*)$/s.exec(text) ?? [];
  expect(Number(gap) + kept.length).toBe(written);
  expect(await read({ tailLines: 2 })).toBe(text.split('\n').slice(-3).join('\n'));
});

it('a follower gets every record across rotations that it keeps up with', async () => {
  const writer = new LogWriter({ directory, maxBytes: 5_000 });
  await write(writer, 'first\n');
  const reading = read({ follow: writer });
  for (let i = 0; i < 100; i++) {
    const written = new Promise<void>((resolve) => {
      const off = writer.onChange(() => {
        off();
        resolve();
      });
    });
    await write(writer, `line ${i} ${'y'.repeat(60)}\n`);
    await written;
    // A reader's turn: opening a file takes a few.
    await new Promise((resolve) => setTimeout(resolve, 3));
  }
  await writer.close();
  expect(writer.generation).toBeGreaterThan(1);
  expect((await reading).match(/line \d+/g)).toEqual(Array.from({ length: 100 }, (_, i) => `line ${i}`));
});

it('splits output that is longer than a record, and skips lines that are none', async () => {
  const writer = new LogWriter({ directory });
  await appendFile(join(directory, 'log'), '{"s":1,"t":1,"d":"YQ=\ngarbage\n');
  await write(writer, 'z'.repeat(100_000));
  await writer.close();
  expect(await read()).toBe('z'.repeat(100_000));
});

it('a pipe or a link in place of its file neither blocks a reader nor is followed', async () => {
  execFileSync('mkfifo', [join(directory, 'log')]);
  await appendFile(join(directory, 'real'), '{"s":1,"t":1,"d":"YQ=="}\n');
  await symlink('real', join(directory, 'log.1'));
  expect(await read()).toBe('');
  expect(await read({ tailLines: 3 })).toBe('');
});

it('reports how much is missing in the middle, and where another start of the sandbox begins', async () => {
  const line = (o: number, text: string, t = 1): string => `${JSON.stringify({ s: 1, t, o, d: Buffer.from(text).toString('base64') })}\n`;
  await appendFile(join(directory, 'log.1'), line(0, 'aa\n', 10) + line(3, 'bb\n', 20) + line(10, 'cc\n', 30));
  await appendFile(join(directory, 'log'), line(0, 'dd\n', 40) + line(3, 'ee\n', 50));
  expect(await read()).toBe('aa\nbb\n<4>cc\ndd\nee\n');
  expect(await read({ tailLines: 2 })).toBe('dd\nee\n');
  expect(await read({ tailLines: 3 })).toBe('cc\ndd\nee\n');
  expect(await read({ sinceMs: 30 })).toBe('<4>cc\ndd\nee\n');
  expect(await read({ sinceMs: 40 })).toBe('dd\nee\n');
  expect(await read({ sinceMs: 20, tailLines: 1 })).toBe('ee\n');
});

it('a tail is exact while more is written and the files are rotated', async () => {
  const writer = new LogWriter({ directory, maxBytes: 20_000 });
  const line = (i: number): string => `line ${i} ${'z'.repeat(60)}\n`;
  for (let i = 0; i < 10; i++) await write(writer, line(i));
  // The disk takes records later.
  await expect.poll(async () => await read({ writer })).toContain('line 9 ');
  for (let i = 10; i < 1000; i++) {
    await write(writer, line(i));
    if (i % 50 !== 49) continue;
    const lines = (await read({ tailLines: 7, writer })).split('\n').slice(0, -1);
    expect(lines).toHaveLength(7);
    const numbers = lines.map((text) => Number(/\d+/.exec(text)?.[0]));
    expect(numbers).toEqual(numbers.map((_, at) => (numbers[0] ?? 0) + at));
  }
  await writer.close();
});

it('a record whose time is no time is passed over', async () => {
  const times = ['1e300', '-1', '0.5', '"1"', String(Date.UTC(10_000, 0)), '1700000000000'];
  for (const [index, t] of times.entries()) {
    await appendFile(join(directory, 'log'), `{"s":1,"t":${t},"d":"${Buffer.from(String(index)).toString('base64')}"}\n`);
  }
  expect(await read()).toBe('5');
});
