import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  ftruncateSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  closeSync,
  readFileSync,
  readlinkSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { bytesOf, fsPath, showPath } from './names.ts';
import { readTree, type LeftOut, type ReadTreeOptions } from './read-tree.ts';
import { describeTree } from './testing/describe-tree.ts';
import { arbitraryTree, makeTree } from './testing/trees.ts';
import { tarEnd, tarHeader, tarPadding, type TarHeader } from './tar-writer.ts';
import { writeTree, type WriteTreeOptions } from './write-tree.ts';

let base: string;
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), 'drover-tree-'));
});
afterEach(() => rmSync(base, { recursive: true, force: true }));

const { signal } = new AbortController();

async function* tarOf(path: string, left: LeftOut[], options: Partial<ReadTreeOptions> = {}): AsyncGenerator<Buffer> {
  for await (const part of readTree({ path, name: 'tree', followLinks: false, signal, ...options })) {
    if (Buffer.isBuffer(part)) yield part;
    else left.push(part);
  }
}

async function bytes(tar: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of tar) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function unpack(tar: AsyncIterable<Uint8Array>, root: string, options: Partial<WriteTreeOptions> = {}) {
  const left: LeftOut[] = [];
  mkdirSync(root, { recursive: true });
  const written = await writeTree(tar, {
    root,
    rootIsNew: false,
    links: 'below',
    owner: 'keep',
    leftOut: (item) => left.push(item),
    signal,
    ...options,
  });
  return { ...written, left };
}

const names = (left: readonly LeftOut[]): string[] => left.map(({ path, reason }) => `${path.replace(`${base}/`, '')} ${reason}`);

describe('a tree survives a tar stream', () => {
  test('with any names, modes, owners, times, links, holes and attributes', async () => {
    let round = 0;
    await fc.assert(
      fc.asyncProperty(arbitraryTree, fc.integer({ min: 100, max: 600_000 }), async (tree, chunk) => {
        const from = join(base, `from${round}`);
        const to = join(base, `to${round++}`);
        makeTree(from, tree);
        const left: LeftOut[] = [];
        const tar = await bytes(tarOf(from, left));
        expect(left).toEqual([]);
        const pieces = async function* (): AsyncGenerator<Buffer> {
          for (let at = 0; at < tar.length; at += chunk) yield tar.subarray(at, at + chunk);
        };
        expect((await unpack(pieces(), to)).left).toEqual([]);
        expect(describeTree(join(to, 'tree'))).toEqual(describeTree(from));
      }),
      { numRuns: 40 },
    );
  });

  test('written by GNU tar, and read by it', async () => {
    let round = 0;
    await fc.assert(
      fc.asyncProperty(arbitraryTree, async (tree) => {
        const [from, gnu, back] = ['from', 'gnu', 'back'].map((name) => join(base, `${name}${round}`)) as [string, string, string];
        round++;
        makeTree(from, tree);
        const all = ['--xattrs', '--xattrs-include=user.*', '--numeric-owner', '--sparse', '--format=posix'];
        mkdirSync(gnu);
        execFileSync('tar', ['-xp', ...all.slice(0, 3), '-C', gnu], {
          input: await bytes(tarOf(from, [])),
          // Warnings about times.
          stdio: ['pipe', 'ignore', 'ignore'],
        });
        expect(describeTree(join(gnu, 'tree'))).toEqual(describeTree(from));
        const tar = execFileSync('tar', ['-c', ...all, '-C', gnu, 'tree'], { maxBuffer: 1e9 });
        expect((await unpack(one(tar), back)).left).toEqual([]);
        expect(describeTree(join(back, 'tree'))).toEqual(describeTree(from));
      }),
      { numRuns: 8 },
    );
  });
});

async function* one(tar: Buffer): AsyncGenerator<Buffer> {
  yield tar;
}

describe('reading a tree', () => {
  test('reports what it leaves out, and continues', async () => {
    mkdirSync(join(base, 'd'));
    execFileSync('mkfifo', [join(base, 'd/pipe')]);
    const server = createServer().listen(join(base, 'd/socket'));
    await new Promise((resolve) => server.once('listening', resolve));
    writeFileSync(join(base, 'd/z'), 'z');
    const left: LeftOut[] = [];
    const tar = await bytes(tarOf(join(base, 'd'), left));
    server.close();
    expect(names(left)).toEqual(['d/pipe is a FIFO', 'd/socket is a socket']);
    await unpack(one(tar), join(base, 'to'));
    expect(readdirSync(join(base, 'to/tree'))).toEqual(['z']);
  });

  test.each([
    ['shrinks', (path: string): void => truncateSync(path, 1_000_000)],
    ['grows', (path: string): void => appendFileSync(path, 'more')],
    ['is overwritten', (path: string): void => writeFileSync(path, Buffer.alloc(8_000_000, 'b'))],
  ])('a large file that %s meanwhile ends the copy with its name', async (_, change) => {
    const path = join(base, 'large');
    writeFileSync(path, Buffer.alloc(8_000_000, 'a'));
    const reading = async (): Promise<void> => {
      let changed = false;
      for await (const _part of readTree({ path, name: 'large', followLinks: false, signal })) {
        if (!changed) change(path);
        changed = true;
      }
    };
    await expect(reading()).rejects.toMatchObject({
      code: 'failed-precondition',
      message: expect.stringContaining(`${path} changed while it was copied`),
    });
  });

  test('a large file that cannot be read to its end ends the copy with its name', async () => {
    const path = join(base, 'd/large');
    mkdirSync(join(base, 'd'));
    writeFileSync(path, Buffer.alloc(8_000_000, 'a'));
    const probe = await open(path);
    const prototype = Object.getPrototypeOf(probe) as Pick<typeof probe, 'read'>;
    await probe.close();
    const failing = vi.spyOn(prototype, 'read').mockRejectedValue(Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO' }));
    onTestFinished(() => failing.mockRestore());
    await expect(bytes(tarOf(join(base, 'd'), []))).rejects.toMatchObject({
      code: 'runtime-failed',
      message: `${path} cannot be read to its end: i/o error after 0 bytes`,
    });
  });

  test('copies the content of a file that reports no size', async () => {
    const left: LeftOut[] = [];
    const tar = await bytes(tarOf('/proc/version', left));
    await unpack(one(tar), join(base, 'to'), { owner: undefined });
    expect(readFileSync(join(base, 'to/tree'))).toEqual(readFileSync('/proc/version'));
    expect(left).toEqual([]);
  });

  test('follows links if asked to, and reports dangling links and cycles', async () => {
    mkdirSync(join(base, 'd/sub'), { recursive: true });
    writeFileSync(join(base, 'target'), 'content');
    symlinkSync('../target', join(base, 'd/link'));
    symlinkSync('nowhere', join(base, 'd/dangling'));
    symlinkSync('..', join(base, 'd/sub/up'));
    const left: LeftOut[] = [];
    const tar = await bytes(tarOf(join(base, 'd'), left, { followLinks: true }));
    expect(names(left)).toEqual(['d/dangling does not exist, or is a link to nothing', 'd/sub/up is a link to a directory above it']);
    await unpack(one(tar), join(base, 'to'));
    expect(lstatSync(join(base, 'to/tree/link')).isFile()).toBe(true);
    expect(readFileSync(join(base, 'to/tree/link'), 'utf8')).toBe('content');
  });
});

describe('writing a tree', () => {
  test('a directory that exists keeps its mode, and a link to a directory is not replaced by a file', async () => {
    const from = join(base, 'from');
    mkdirSync(join(from, 'tmp'), { recursive: true });
    writeFileSync(join(from, 'bin'), 'x');
    const to = join(base, 'to');
    mkdirSync(join(to, 'tree/tmp'), { recursive: true });
    chmodSync(join(to, 'tree/tmp'), 0o1777);
    mkdirSync(join(to, 'tree/usr'));
    symlinkSync('usr', join(to, 'tree/bin'));
    const { left } = await unpack(tarOf(from, []), to, { owner: undefined });
    expect(lstatSync(join(to, 'tree/tmp')).mode & 0o7777).toBe(0o1777);
    expect(readlinkSync(join(to, 'tree/bin'))).toBe('usr');
    expect(names(left)).toEqual(['tree/bin would replace a directory, to which a link leads']);
  });

  test('keeps set-user-ID bits only with the owners', async () => {
    const from = join(base, 'from');
    mkdirSync(from);
    writeFileSync(join(from, 'tool'), 'x');
    lchownSync(join(from, 'tool'), 12, 34);
    chmodSync(join(from, 'tool'), 0o4755);
    await unpack(tarOf(from, []), join(base, 'plain'), { owner: { uid: 1000, gid: 1001 } });
    expect(lstatSync(join(base, 'plain/tree/tool'))).toMatchObject({ uid: 1000, gid: 1001 });
    expect(lstatSync(join(base, 'plain/tree/tool')).mode & 0o7777).toBe(0o755);
    await unpack(tarOf(from, []), join(base, 'kept'));
    expect(lstatSync(join(base, 'kept/tree/tool'))).toMatchObject({ uid: 12, gid: 34 });
    expect(lstatSync(join(base, 'kept/tree/tool')).mode & 0o7777).toBe(0o4755);
  });

  test('reports a path that is too long for the kernel, and copies the rest', async () => {
    const from = join(base, 'from');
    mkdirSync(from);
    writeFileSync(join(from, 'z'), 'x');
    const chain = (top: string): string => join(base, top, ...Array.from({ length: 12 }, () => 'd'.repeat(200)));
    for (const top of ['from', 'other']) mkdirSync(chain(top), { recursive: true });
    renameSync(join(base, 'other'), join(chain('from'), 'other'));
    const leftOut: LeftOut[] = [];
    await unpack(tarOf(from, leftOut), join(base, 'to'));
    expect(leftOut).toEqual([{ path: expect.stringContaining('/dddd'), reason: 'has too long a path' }]);
    expect(existsSync(join(base, 'to/tree/z'))).toBe(true);
    // The end of the test removes it by its path.
    renameSync(join(chain('from'), 'other'), join(base, 'other'));
  });

  test('leaves no incomplete file when the stream breaks off', async () => {
    const from = join(base, 'from');
    mkdirSync(from);
    writeFileSync(join(from, 'file'), Buffer.alloc(2_000_000));
    const half = async function* (): AsyncGenerator<Buffer> {
      yield (await bytes(tarOf(from, []))).subarray(0, 500_000);
    };
    await expect(unpack(half(), join(base, 'to'))).rejects.toMatchObject({
      code: 'invalid-argument',
      message: expect.stringContaining('ends in the middle'),
    });
    expect(existsSync(join(base, 'to/tree/file'))).toBe(false);
  });

  test('keeps holes', async () => {
    const from = join(base, 'from');
    const fd = openSync(from, 'w');
    writeSync(fd, 'end', 50_000_000);
    ftruncateSync(fd, 100_000_000);
    closeSync(fd);
    const tar = await bytes(tarOf(from, []));
    expect(tar.length).toBeLessThan(1_000_000);
    await unpack(one(tar), join(base, 'to'));
    const { size, blocks } = lstatSync(join(base, 'to/tree'));
    expect(size).toBe(100_000_000);
    expect(blocks * 512).toBeLessThan(1_000_000);
  });
});

test('showPath shows UTF-8 as text, and other names as bytes', () => {
  expect(showPath(Buffer.from('grün').toString('latin1'))).toBe('grün');
  expect(showPath('caf\xe9\n')).toBe('caf\\xe9\\x0a');
  // U+009B begins a control sequence as ESC [ does (ECMA-48, 5.3).
  expect(showPath(Buffer.from('a\u001b[31m\u009b31m').toString('latin1'))).toBe('a\\x1b[31m\\xc2\\x9b31m');
  expect(fsPath('caf\xe9')).toEqual(bytesOf('caf\xe9'));
});

describe('an archive that is made to exhaust its reader is refused', () => {
  /** A PAX record: its length, which counts its own digits, then key=value (POSIX, pax). */
  const record = (key: string, value: string): string => {
    const rest = ` ${key}=${value}\n`;
    let length = rest.length;
    while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
    return `${length}${rest}`;
  };
  const header = (flag: string, content: Buffer): Buffer => {
    const block = tarHeader({ name: 'x', type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeNs: 0n, size: content.length }).subarray(-512);
    block.write(flag, 156, 'latin1');
    block.fill(' ', 148, 156);
    block.write(
      `${block
        .reduce((sum, byte) => sum + byte, 0)
        .toString(8)
        .padStart(6, '0')}\0 `,
      148,
      'latin1',
    );
    return Buffer.concat([block, content, tarPadding(content.length)]);
  };
  const read = async (...pieces: readonly Buffer[]) =>
    await unpack(one(Buffer.concat([...pieces, tarEnd])), join(base, 'target'), { links: 'none', owner: undefined });

  // Reading the map anew at each of its blocks would take minutes.
  test('with a sparse map without an end', { timeout: 30_000 }, async () => {
    const sparse = { 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.realsize': '9' };
    const records = Object.entries(sparse).map(([key, value]) => record(key, value));
    const map = Buffer.from(`1000000\n${'0\n'.repeat(900_000)}`);
    await expect(read(header('x', Buffer.from(records.join(''))), header('0', map))).rejects.toMatchObject({ code: 'invalid-argument' });
  });

  test('with many global headers of a permitted size', async () => {
    const globals = [1, 2, 3].map((i) => header('g', Buffer.from(record(`comment.${i}`, 'x'.repeat(500_000)))));
    await read(...globals.slice(0, 2));
    await expect(read(...globals)).rejects.toMatchObject({ code: 'unsafe-archive' });
  });
});

describe('an archive from a sandbox', () => {
  const entry = { type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeNs: 0n } as const;
  const hostile = async (...entries: readonly TarHeader[]) => {
    const content = Buffer.from('theirs');
    const pieces = entries.flatMap((header) => [
      tarHeader({ ...header, ...(header.type === 'file' && { size: content.length }) }),
      ...(header.type === 'file' ? [content, tarPadding(content.length)] : []),
    ]);
    return await unpack(one(Buffer.concat([...pieces, tarEnd])), join(base, 'target'), { links: 'none', owner: undefined });
  };
  const refused = { code: 'unsafe-archive' };
  beforeEach(() => mkdirSync(join(base, 'outside')));

  test.each(['../evil', '/evil', 'a/../../evil'])('does not leave the target: %s', async (name) => {
    await expect(hostile({ ...entry, name })).rejects.toMatchObject(refused);
  });

  test('is not written through a link that it contains', async () => {
    const linkName = join(base, 'outside');
    await expect(hostile({ ...entry, name: 'd', type: 'symlink', linkName }, { ...entry, name: 'd/evil' })).rejects.toMatchObject(refused);
    expect(readdirSync(linkName)).toEqual([]);
  });

  test('replaces a link that has a file’s name, and does not write through it', async () => {
    writeFileSync(join(base, 'outside/precious'), 'mine');
    mkdirSync(join(base, 'target'));
    symlinkSync('../outside/precious', join(base, 'target/file'));
    await hostile({ ...entry, name: 'file' });
    expect(readFileSync(join(base, 'outside/precious'), 'utf8')).toBe('mine');
    expect(readFileSync(join(base, 'target/file'), 'utf8')).toBe('theirs');
  });

  test('makes no hard link to a file that existed before', async () => {
    mkdirSync(join(base, 'target'));
    writeFileSync(join(base, 'target/mine'), 'mine');
    await expect(hostile({ ...entry, name: 'x', type: 'hardlink', linkName: 'mine' })).rejects.toMatchObject(refused);
  });
});
