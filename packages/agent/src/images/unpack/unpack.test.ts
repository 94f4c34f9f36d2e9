import { createHash, randomBytes } from 'node:crypto';
import { existsSync, lstatSync, readFileSync, statSync } from 'node:fs';
import { mkdir, readdir, readlink, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { pack, type Header } from 'tar-stream';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expansionFreeBytes, maxLayerEntries } from '../../limits.ts';
import { LayerWriter } from './layer-writer.ts';
import type { TarEntry } from '@drover/archive';
import { command, requireTools, temporaryDirectory } from '../testing/peers.ts';
import { unpackInThread } from './unpack-workers.ts';
import { unpackLayer, type LayerFile } from './unpack.ts';

let directory: string;
beforeAll(async () => {
  requireTools(['/usr/bin/umoci', 'umoci'], ['/usr/sbin/setcap', 'libcap2-bin'], ['/usr/bin/tar', 'tar']);
  directory = await temporaryDirectory();
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

type Entry = Partial<Header> & { readonly name: string; readonly content?: Buffer | string };

async function tarOf(entries: readonly Entry[]): Promise<Buffer> {
  const archive = pack();
  for (const { content, ...header } of entries) archive.entry(header, content ?? '');
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

async function unpack(data: Buffer, diffId?: string, lower: readonly string[] = []): Promise<string> {
  const name = randomBytes(6).toString('hex');
  const file = join(directory, `${name}.layer`);
  const root = join(directory, name, 'root');
  await writeFile(file, data);
  await mkdir(root, { recursive: true });
  await unpackLayer({ path: file, offset: 0, size: data.length, digest: undefined }, root, diffId, lower);
  return root;
}

/** What a tree is: one line a file. */
async function listing(root: string): Promise<string[]> {
  const format = '%P %y %m %U:%G %s %T@ %l %n\\n';
  const lines = (await command('find', root, '-mindepth', '1', '-printf', format)).trim().split('\n');
  // Sizes of directories are the file system's own; times in whole seconds.
  return lines
    .map((line) => line.replace(/^(\S+ d \S+ \S+) \d+/, '$1').replace(/(\d+)\.\d+/g, '$1'))
    .map((line) => (/ d /.test(line) ? line.replace(/ \d+$/, '') : line))
    .sort();
}

describe('R-11: what a layer has', () => {
  test('a tree with everything in it is unpacked as GNU tar unpacks it', async () => {
    const source = join(directory, 'source');
    await mkdir(join(source, 'deep', 'x'.repeat(120), 'y'.repeat(120)), { recursive: true });
    await writeFile(join(source, 'deep', 'x'.repeat(120), 'y'.repeat(120), 'long'), 'long name');
    await writeFile(join(source, 'plain'), randomBytes(300_000));
    await writeFile(join(source, 'setuid'), 'x');
    await writeFile(join(source, 'capable'), 'x');
    await writeFile(join(source, 'ünïcode'), 'x');
    await writeFile(Buffer.concat([Buffer.from(`${source}/latin1-`), Buffer.from([0xe9])]), 'not UTF-8');
    const script = [
      `cd '${source}'`,
      'ln plain hard && ln -s plain soft && ln -s /nowhere dangling && ln -s setuid owned',
      'chown 12:34 setuid && chmod 6755 setuid && chown -h 56:78 owned',
      'mkfifo -m 640 fifo && mknod null c 1 3 && mknod disk b 8 17 && chmod 1777 deep',
      'mkdir closed && touch closed/inside && chmod 0500 closed',
      'touch -h -d 2001-02-03T04:05:06Z soft closed deep plain',
      'truncate -s 5000000 sparse && printf data | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none',
      // cap_setuid is the bit that makes a byte of 0x80 of the attribute.
      'setcap cap_setuid,cap_net_raw=ep capable',
    ].join(' && ');
    await command('sh', '-c', script);
    for (const format of ['pax', 'gnu']) {
      const tar = join(directory, `${format}.tar`);
      await command(
        'tar',
        `--format=${format}`,
        '--sparse',
        '--numeric-owner',
        '-C',
        source,
        ...(format === 'pax' ? ['--xattrs', '--xattrs-include=*'] : []),
        '-cf',
        tar,
        '.',
      );
      const oracle = join(directory, `oracle-${format}`);
      await mkdir(oracle);
      await command('tar', '--numeric-owner', '--xattrs', '--xattrs-include=*', '-C', oracle, '-xpf', tar);
      const root = await unpack(readFileSync(tar));
      expect(await listing(root)).toEqual(await listing(oracle));
      expect(readFileSync(join(root, 'sparse')).equals(readFileSync(join(source, 'sparse')))).toBe(true);
      expect(readFileSync(join(root, 'plain')).equals(readFileSync(join(source, 'plain')))).toBe(true);
      expect(statSync(join(root, 'sparse')).blocks).toBeLessThan(1000);
      expect(statSync(join(root, 'hard')).ino).toBe(statSync(join(root, 'plain')).ino);
      if (format === 'pax')
        expect(await command('/usr/sbin/getcap', '-n', join(root, 'capable'))).toMatch(
          /cap_net_raw,cap_setuid=ep|cap_setuid,cap_net_raw=ep/,
        );
    }
  });

  test.each(['0.0', '0.1', '1.0'])('sparse files of PAX format %s are right', async (version) => {
    const source = join(directory, `sparse-${version}`);
    await mkdir(source);
    await command(
      'sh',
      '-c',
      `cd ${source} && truncate -s 3000000 s && for at in 1000 700000 2000000; do printf abc | dd of=s bs=1 seek=$at conv=notrunc status=none; done`,
    );
    const tar = join(directory, `sparse-${version}.tar`);
    await command('tar', '--format=pax', '--sparse', `--sparse-version=${version}`, '-C', source, '-cf', tar, 's');
    const root = await unpack(readFileSync(tar));
    expect(readFileSync(join(root, 's')).equals(readFileSync(join(source, 's')))).toBe(true);
  });

  test('gzip of several members, and zstd of several frames, are read to their end', async () => {
    const tar = await tarOf([
      { name: 'a', content: randomBytes(200_000) },
      { name: 'b', content: 'b' },
    ]);
    const parts = [tar.subarray(0, 100_000), tar.subarray(100_000)];
    for (const compress of [gzipSync, zstdCompressSync]) {
      const root = await unpack(
        Buffer.concat(parts.map((part) => compress(part))),
        `sha256:${createHash('sha256').update(tar).digest('hex')}`,
      );
      expect(await readdir(root)).toEqual(['a', 'b']);
      expect(readFileSync(join(root, 'b'), 'utf8')).toBe('b');
    }
  });

  test('whiteouts become what overlayfs hides with', async () => {
    const base = join(directory, 'base');
    await command('sh', '-c', `mkdir -p ${base}/etc ${base}/var && touch ${base}/etc/passwd ${base}/etc/group ${base}/var/old`);
    const root = await unpack(
      await tarOf([
        { name: 'etc/', type: 'directory' },
        { name: 'etc/.wh.passwd' },
        { name: 'var/', type: 'directory' },
        { name: 'var/.wh..wh..opq' },
        { name: 'var/kept', content: 'x' },
        { name: '.wh..wh.aufs' },
        { name: 'both', content: 'stays' },
        { name: '.wh.both' },
      ]),
      undefined,
      [base],
    );
    const hidden = lstatSync(join(root, 'etc/passwd'));
    expect([hidden.isCharacterDevice(), hidden.rdev]).toEqual([true, 0]);
    expect(readFileSync(join(root, 'both'), 'utf8')).toBe('stays');
    expect(existsSync(join(root, '.wh..wh.aufs'))).toBe(false);
    // The kernel is the judge: mounted over another layer, what is hidden is gone.
    const merged = join(root, '../merged');
    await mkdir(merged);
    await command('mount', '-t', 'overlay', 'overlay', '-o', `ro,lowerdir=${root}:${base}`, merged);
    try {
      expect(await readdir(join(merged, 'etc'))).toEqual(['group']);
      expect(await readdir(join(merged, 'var'))).toEqual(['kept']);
    } finally {
      await command('umount', merged);
    }
  });

  test('in a thread it is the same', async () => {
    const tar = await tarOf([{ name: 'a', content: 'x' }]);
    const file = join(directory, 'threaded.layer');
    const root = join(directory, 'threaded');
    await writeFile(file, tar);
    await mkdir(root);
    const layer = await unpackInThread(
      { path: file, offset: 0, size: tar.length, digest: undefined },
      root,
      undefined,
      undefined,
      new AbortController().signal,
    );
    const diffId = `sha256:${createHash('sha256').update(tar).digest('hex')}`;
    expect(layer).toEqual({ diffId, bytes: 1, entries: 1, relative: false, rootEntry: false, opaqueRoot: false });
    await expect(
      unpackInThread({ path: file, offset: 0, size: 300, digest: undefined }, root, undefined, undefined, new AbortController().signal),
    ).rejects.toMatchObject({ code: 'corrupt-image', hint: expect.any(String) });
  });
});

describe('R-14: a hostile layer', () => {
  test('does not write through its own links', async () => {
    const outside = join(directory, 'outside');
    await mkdir(outside, { recursive: true });
    await writeFile(join(outside, 'file'), 'mine');
    const root = await unpack(
      await tarOf([
        { name: 'evil', type: 'symlink', linkname: outside },
        { name: 'evil/file', content: 'theirs' },
        { name: 'up', type: 'symlink', linkname: '../../../../../../../../../../..' },
        { name: `up${outside}/file`, content: 'theirs' },
        { name: 'last', type: 'symlink', linkname: join(outside, 'file') },
        { name: 'last', content: 'theirs' },
        { name: 'hard', type: 'symlink', linkname: join(outside, 'file') },
        { name: 'linked', type: 'link', linkname: 'hard' },
        { name: 'linked', content: 'theirs' },
        { name: join(outside, 'absolute'), content: 'inside' },
      ]),
    );
    expect(readFileSync(join(outside, 'file'), 'utf8')).toBe('mine');
    expect(await readdir(outside)).toEqual(['file']);
    // As in a chroot: it all lies in the layer.
    expect(readFileSync(join(root, outside, 'file'), 'utf8')).toBe('theirs');
    expect(readFileSync(join(root, outside, 'absolute'), 'utf8')).toBe('inside');
    expect(await readlink(join(root, 'evil'))).toBe(outside);
  });

  test.each<[string, readonly Entry[], string]>([
    ['..', [{ name: 'a/../../b', content: 'x' }], 'unsafe-archive'],
    ['a hard link out of it', [{ name: 'shadow', type: 'link', linkname: '../../../../../../etc/shadow' }], 'unsafe-archive'],
    ['a hard link to nothing of it', [{ name: 'shadow', type: 'link', linkname: '/etc/shadow' }], 'corrupt-image'],
    [
      'a hard link through a link',
      [
        { name: 'etc', type: 'symlink', linkname: '/etc' },
        { name: 'shadow', type: 'link', linkname: 'etc/shadow' },
      ],
      'unsafe-archive',
    ],
    ['a whiteout of what is above', [{ name: 'a/.wh...' }], 'unsafe-archive'],
    [
      'links in a circle',
      [
        { name: 'a', type: 'symlink', linkname: 'b' },
        { name: 'b', type: 'symlink', linkname: 'a' },
        { name: 'a/x', content: 'x' },
      ],
      'unsafe-archive',
    ],
    ['a name that is too long', [{ name: 'n'.repeat(300), content: 'x' }], 'unsafe-archive'],
  ])('with %s is refused', async (_, entries, code) => {
    await expect(unpack(await tarOf(entries))).rejects.toMatchObject({ code, hint: expect.any(String) });
  });

  test('may not command overlayfs', async () => {
    const root = await unpack(
      await tarOf([
        { name: 'd/', type: 'directory', pax: { 'SCHILY.xattr.trusted.overlay.redirect': '/etc', 'SCHILY.xattr.user.fine': 'yes' } },
      ]),
    );
    const attributes = await command('python3', '-c', 'import os,sys; print(sorted(os.listxattr(sys.argv[1])))', join(root, 'd'));
    expect(attributes.trim()).toBe("['user.fine']");
  });

  test('with a file of 1 TiB, or with too many entries, is refused before anything is written', async () => {
    const root = join(directory, 'counted');
    await mkdir(root);
    const entry: TarEntry = {
      path: 'a',
      type: 'directory',
      linkPath: '',
      mode: 0o755,
      uid: 0,
      gid: 0,
      mtime: 0,
      mtimeNs: 0n,
      size: 0,
      deviceMajor: 0,
      deviceMinor: 0,
      attributes: new Map(),
      sparse: undefined,
    };
    expect(() => new LayerWriter(root).entry({ ...entry, type: 'file', size: 2 ** 40 })).toThrow(
      expect.objectContaining({ code: 'too-large' }),
    );
    const sparse = { realSize: 2 ** 40, segments: [] };
    expect(() => new LayerWriter(root).entry({ ...entry, type: 'file', sparse })).toThrow(expect.objectContaining({ code: 'too-large' }));
    expect(await readdir(root)).toEqual([]);
    const writer = new LayerWriter(root);
    // A whiteout marker that means nothing: counted, not written.
    for (let i = 0; i < maxLayerEntries; i++) writer.entry({ ...entry, path: '.wh..wh.plnk', type: 'file' });
    expect(() => writer.entry(entry)).toThrow(expect.objectContaining({ code: 'too-large' }));
  });

  const zeros = Buffer.alloc(32 * 1024 ** 2);
  const headerOf = async (size: number): Promise<Buffer> => {
    const archive = pack();
    archive.entry({ name: 'zeros', size });
    return await new Promise<Buffer>((resolve) => archive.once('data', (data) => resolve(data as Buffer)));
  };
  const written = async (data: Buffer): Promise<{ file: LayerFile; root: string }> => {
    const path = join(directory, randomBytes(6).toString('hex'));
    await writeFile(path, data);
    await mkdir(`${path}.root`);
    return { file: { path, offset: 0, size: data.length, digest: undefined }, root: `${path}.root` };
  };
  const codecs = [
    ['gzip', (data: Buffer) => gzipSync(data)],
    ['zstd', (data: Buffer) => zstdCompressSync(data)],
    ['no compression', (data: Buffer) => data],
  ] as const;

  test.each(codecs)('is not one that holds a hundred megabytes of zeros, with %s', async (_, compress) => {
    const part = compress(zeros);
    const { file, root } = await written(Buffer.concat([compress(await headerOf(3 * zeros.length)), part, part, part]));
    expect(await unpackLayer(file, root, undefined)).toMatchObject({ bytes: 3 * zeros.length });
    await rm(root, { recursive: true });
  });

  test.each(codecs)('that announces more than its size can hold is refused before a byte is written, with %s', async (_, compress) => {
    const { file, root } = await written(Buffer.concat([compress(await headerOf(expansionFreeBytes + 1)), compress(zeros)]));
    // Without compression, the file is large enough to be honest: it ends too early instead.
    const code = file.size > zeros.length ? 'corrupt-image' : 'unsafe-archive';
    await expect(unpackLayer(file, root, undefined)).rejects.toMatchObject({ code });
    if (code === 'unsafe-archive') expect(await readdir(root)).toEqual([]);
  });

  test('that grows behind its end is refused', async () => {
    const frames = Array.from({ length: expansionFreeBytes / zeros.length + 1 }, () => zstdCompressSync(zeros));
    const { file, root } = await written(Buffer.concat([zstdCompressSync(await tarOf([])), ...frames]));
    await expect(unpackLayer(file, root, undefined)).rejects.toMatchObject({ code: 'unsafe-archive' });
  });

  test('that was changed on the way is corrupt', async () => {
    const tar = await tarOf([{ name: 'a', content: 'x' }]);
    await expect(unpack(tar, `sha256:${'0'.repeat(64)}`)).rejects.toMatchObject({ code: 'corrupt-image' });
    await expect(unpack(gzipSync(tar).subarray(0, 60))).rejects.toMatchObject({ code: 'corrupt-image' });
    await expect(unpack(randomBytes(5000))).rejects.toMatchObject({ code: 'corrupt-image' });
  });
});
