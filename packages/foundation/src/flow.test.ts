import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { BoundedQueue, DroverError, errorCodes, SerialExecutor, writeFileAtomic } from './index.ts';

describe('a bounded queue', () => {
  test('full, it refuses with queue-full and keeps what it holds', async () => {
    const queue = new BoundedQueue<number>({ name: 'the queue', capacity: 2 });
    queue.push(1);
    queue.push(2);
    expect(() => queue.push(3)).toThrowError(expect.objectContaining({ code: 'queue-full' }));
    queue.end();
    expect(await Array.fromAsync(queue)).toEqual([1, 2]);
  });

  test('I-36: dropping the oldest, it counts what is lost', async () => {
    const queue = new BoundedQueue<number>({ name: 'the queue', capacity: 2, dropOldest: true });
    for (const item of [1, 2, 3, 4]) queue.push(item);
    expect(queue.takeDropped()).toBe(2);
    expect(queue.takeDropped()).toBe(0);
    queue.end();
    expect(await Array.fromAsync(queue)).toEqual([3, 4]);
  });

  test('a waiting reader gets what comes, then the error it ended with', async () => {
    const queue = new BoundedQueue<number>({ name: 'the queue', capacity: 2 });
    const read: number[] = [];
    const reading = (async () => {
      for await (const item of queue) read.push(item);
    })();
    queue.push(1);
    queue.end(new Error('cut'));
    await expect(reading).rejects.toThrowError('cut');
    expect(read).toEqual([1]);
  });
});

describe('a serial executor', () => {
  test('runs one at a time, in order, also after a failure', async () => {
    const executor = new SerialExecutor();
    const log: string[] = [];
    let running = 0;
    const task =
      (name: string, fail = false) =>
      async (): Promise<string> => {
        expect(++running).toBe(1);
        await new Promise((resolve) => setImmediate(resolve));
        log.push(name);
        running--;
        if (fail) throw new Error(name);
        return name;
      };
    const outcomes = await Promise.allSettled([executor.run(task('a')), executor.run(task('b', true)), executor.run(task('c'))]);
    expect(outcomes.map((o) => o.status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
    expect(log).toEqual(['a', 'b', 'c']);
  });

  test('refuses more than its limit', async () => {
    const executor = new SerialExecutor(1);
    const first = executor.run(async () => await Promise.resolve(1));
    await expect(executor.run(() => 2)).rejects.toMatchObject({ code: 'queue-full' });
    expect(await first).toBe(1);
    expect(await executor.run(() => 3)).toBe(3);
  });
});

describe('errors', () => {
  test('every code has a status and an exit code that a shell can see', () => {
    for (const [code, entry] of Object.entries(errorCodes)) {
      expect(entry.exit, code).toBeGreaterThan(0);
      expect(entry.exit, code).toBeLessThan(256);
      expect(entry.status, code).toBeGreaterThan(0);
    }
  });

  test.each([
    ['ENOSPC', 'disk-full'],
    ['EADDRINUSE', 'port-in-use'],
    ['EACCES', 'missing-privilege'],
    ['EPERM', 'missing-privilege'],
  ])('the system error %s becomes %s with a hint, its cause kept', (errno, code) => {
    const cause = Object.assign(new Error(`${errno}: it failed`), { code: errno });
    const error = DroverError.from(cause);
    expect(error).toMatchObject({ code, hint: expect.any(String), cause });
  });

  test('an error of ours passes unchanged; anything else becomes internal or the fallback', () => {
    const own = new DroverError('name-taken', 'taken');
    expect(DroverError.from(own)).toBe(own);
    expect(DroverError.from('text').code).toBe('internal');
    expect(DroverError.from(new TypeError('x'), 'runtime-failed').code).toBe('runtime-failed');
    expect(DroverError.from(AbortSignal.abort().reason).code).toBe('cancelled');
  });
});

describe('atomic writes', () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'drover-files-'));
  });
  afterEach(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  test('replace the whole file and leave no temporary', async () => {
    const path = join(directory, 'file');
    await writeFile(path, 'old and longer');
    await writeFileAtomic(path, 'new', { mode: 0o640 });
    expect(await readFile(path, 'utf8')).toBe('new');
    expect((await stat(path)).mode & 0o777).toBe(0o640);
    expect(await readdir(directory)).toEqual(['file']);
  });

  test('on a full disk the old file stays whole and nothing else is left', async () => {
    const run = promisify(execFile);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', directory]);
    try {
      const path = join(directory, 'file');
      await writeFile(path, 'old');
      await expect(writeFileAtomic(path, Buffer.alloc(1 << 20))).rejects.toMatchObject({ code: 'ENOSPC' });
      expect(await readFile(path, 'utf8')).toBe('old');
      expect(await readdir(directory)).toEqual(['file']);
    } finally {
      await run('umount', [directory]);
    }
  });
});
