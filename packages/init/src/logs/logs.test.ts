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

async function read(options: { readonly tailLines?: number; readonly follow?: LogWriter } = {}): Promise<string> {
  let text = '';
  const entries = readLog({
    directory,
    tailLines: options.tailLines ?? 0,
    signal: new AbortController().signal,
    ...(options.follow && { follow: options.follow }),
  });
  for await (const entry of entries) text += entry.data.toString();
  return text;
}

it('is rotated at its size, and never takes more than twice that', async () => {
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

it('cuts what is longer than a record, and skips what is none', async () => {
  const writer = new LogWriter({ directory });
  await appendFile(join(directory, 'log'), '{"s":1,"t":1,"d":"YQ=\ngarbage\n');
  await write(writer, 'z'.repeat(100_000));
  await writer.close();
  expect(await read()).toBe('z'.repeat(100_000));
});

it('what is no file in the place of one holds no reader up, and is not followed', async () => {
  execFileSync('mkfifo', [join(directory, 'log')]);
  await appendFile(join(directory, 'real'), '{"s":1,"t":1,"d":"YQ=="}\n');
  await symlink('real', join(directory, 'log.1'));
  expect(await read()).toBe('');
  expect(await read({ tailLines: 3 })).toBe('');
});
