import { chmod, lstat, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { extract, pack, type Header } from 'tar-stream';
import { Unpack } from './copy-out.ts';

let base: string;
let outside: string;

beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), 'drover-unpack-'));
  outside = await mkdtemp(join(tmpdir(), 'drover-outside-'));
});
afterEach(async () => {
  await rm(base, { recursive: true });
  await rm(outside, { recursive: true });
});

type Part = Partial<Header> & { readonly name: string; readonly content?: string };

async function unpack(parts: readonly Part[], rename?: string): Promise<Unpack> {
  const tar = pack();
  for (const { content, ...header } of parts) {
    if (content === undefined) tar.entry(header);
    else tar.entry(header, content);
  }
  tar.finalize();
  const unpacking = new Unpack(base, rename);
  const reading = extract();
  tar.pipe(reading);
  for await (const entry of reading) await unpacking.entry(entry as never);
  await unpacking.finish();
  return unpacking;
}

test('R-3: files, directories, links and modes come out as they are', async () => {
  await unpack([
    { name: 'top/', type: 'directory', mode: 0o555 },
    { name: 'top/file', mode: 0o640, content: 'hello' },
    { name: 'top/link', type: 'symlink', linkname: 'file' },
    { name: 'top/again', type: 'link', linkname: 'top/file' },
  ]);
  expect(await readFile(join(base, 'top/link'), 'utf8')).toBe('hello');
  expect(await readFile(join(base, 'top/again'), 'utf8')).toBe('hello');
  expect((await lstat(join(base, 'top/file'))).mode & 0o7777).toBe(0o640);
  expect((await lstat(join(base, 'top'))).mode & 0o7777).toBe(0o555);
  await chmod(join(base, 'top'), 0o755);
});

test('the topmost name becomes the one that was asked for', async () => {
  await unpack([{ name: 'passwd', content: 'x' }], 'copy');
  expect(await readFile(join(base, 'copy'), 'utf8')).toBe('x');
});

test('a directory does not take the place of a file, and says so', async () => {
  await writeFile(join(base, 'there'), 'mine');
  await expect(unpack([{ name: 'top/', type: 'directory' }], 'there')).rejects.toMatchObject({
    code: 'failed-precondition',
    message: `${join(base, 'there')} is there, and is not a directory`,
  });
  expect(await readFile(join(base, 'there'), 'utf8')).toBe('mine');
});

test('a copy that breaks off leaves no half file', async () => {
  const half = async function* (): AsyncGenerator<Uint8Array> {
    yield Buffer.from('the beginning');
    throw new Error('the link is gone');
  };
  const header = { name: 'file', type: 'file', mode: 0o644, size: 100 } as Header;
  const entry = Object.assign(half(), { header, resume: () => undefined });
  await expect(new Unpack(base, undefined).entry(entry)).rejects.toThrow('the link is gone');
  await expect(lstat(join(base, 'file'))).rejects.toThrow('ENOENT');
});

test('no setuid bit comes along', async () => {
  await unpack([{ name: 'tool', mode: 0o4755, content: 'x' }]);
  expect((await lstat(join(base, 'tool'))).mode & 0o7000).toBe(0);
});

test.each([['../evil'], ['/evil'], ['a/../../evil']])('a path that leaves the target is refused: %s', async (name) => {
  await expect(unpack([{ name, content: 'x' }])).rejects.toMatchObject({ code: 'unsafe-archive' });
});

test('a link that came with the copy is not walked through', async () => {
  await expect(
    unpack([
      { name: 'd', type: 'symlink', linkname: outside },
      { name: 'd/evil', content: 'x' },
    ]),
  ).rejects.toMatchObject({ code: 'unsafe-archive' });
  await expect(lstat(join(outside, 'evil'))).rejects.toThrow();
});

test('a file is not written through a link that is there: the link is replaced', async () => {
  await writeFile(join(outside, 'precious'), 'mine');
  await symlink(join(outside, 'precious'), join(base, 'file'));
  await unpack([{ name: 'file', content: 'theirs' }]);
  expect(await readFile(join(outside, 'precious'), 'utf8')).toBe('mine');
  expect(await readFile(join(base, 'file'), 'utf8')).toBe('theirs');
});

test('a hard link reaches no file outside', async () => {
  await mkdir(join(base, 'in'));
  await symlink(outside, join(base, 'in', 'way'));
  await writeFile(join(outside, 'secret'), 's');
  await expect(unpack([{ name: 'x', type: 'link', linkname: 'in/way/secret' }])).rejects.toMatchObject({ code: 'unsafe-archive' });
});
