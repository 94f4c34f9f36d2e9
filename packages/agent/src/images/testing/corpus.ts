import { pack, type Header } from 'tar-stream';

/** One entry of a layer; `content` only for files. */
export type Entry = Partial<Header> & { readonly name: string; readonly content?: string };

export interface CorpusImage {
  readonly name: string;
  /** Lowest first. A string is a shell script that fills the current directory, which GNU tar packs with the arguments in `tar`. */
  readonly layers: readonly (readonly Entry[] | string)[];
  readonly tar?: readonly string[];
  /** Changes the bytes of each layer's archive before it is compressed. */
  readonly edit?: (archive: Buffer) => Buffer;
  /** How our copy is compressed; umoci 0.4 reads gzip only, and gets that. */
  readonly compression?: 'none' | 'gzip' | 'zstd';
  /** Where the tree differs from umoci's on purpose. */
  readonly differs?: { readonly why: string; readonly paths: readonly string[] };
  /** Refused on purpose, where umoci unpacks it. */
  readonly refused?: { readonly why: string; readonly code: string };
}

const time = new Date('2020-01-02T03:04:05Z');
const dir = (name: string, more: Partial<Header> = {}): Entry => ({ name, type: 'directory', mode: 0o755, ...more });
const file = (name: string, content = name, more: Partial<Header> = {}): Entry => ({ name, content, mode: 0o644, ...more });
const link = (name: string, linkname: string, more: Partial<Header> = {}): Entry => ({
  name,
  type: 'symlink',
  linkname,
  mode: 0o777,
  ...more,
});
const hard = (name: string, linkname: string): Entry => ({ name, type: 'link', linkname });
const xattr = (name: string, value: string): Partial<Header> => ({ pax: { [`SCHILY.xattr.${name}`]: value } });

/** The usual merged-usr base: /lib and /bin are links. */
const base: readonly Entry[] = [
  dir('usr/'),
  dir('usr/lib/', { mode: 0o751, uid: 7, gid: 8 }),
  file('usr/lib/old', 'old'),
  dir('usr/bin/'),
  link('lib', 'usr/lib'),
  link('bin', '/usr/bin'),
  dir('tmp/', { mode: 0o1777 }),
  dir('etc/'),
  file('etc/passwd', 'root', { mode: 0o640, uid: 1, gid: 2 }),
];

/** images whose tree must be that of `umoci unpack`. */
export const corpus: readonly CorpusImage[] = [
  {
    name: 'names, modes, owners and times',
    layers: [
      [
        dir('d/', { mode: 0o2750, uid: 1000, gid: 1001 }),
        file('d/setuid', 'x', { mode: 0o4755 }),
        file('d/ünïcode'),
        file('d/with space'),
        file('d/new\nline'),
        file('d/closed', 'x', { mode: 0 }),
      ],
    ],
  },
  {
    name: 'symbolic links of every form',
    layers: [
      [
        link('absolute', '/etc'),
        link('relative', '../x'),
        link('dangling', 'nowhere'),
        link('self', 'self'),
        link('owned', 'x', { uid: 5, gid: 6 }),
      ],
    ],
  },
  { name: 'hard links in a layer', layers: [[file('a'), hard('b', 'a'), dir('d/'), hard('d/c', '/a'), hard('e', './d/c')]] },
  { name: 'a hard link to a file of a lower layer', layers: [base, [hard('etc/shadow', 'etc/passwd')]] },
  {
    name: 'a hard link to a file two layers below, and a change of it above',
    layers: [base, [hard('etc/shadow', '/etc/passwd')], [file('etc/passwd', 'new')]],
  },
  { name: 'a hard link to a symbolic link of a lower layer', layers: [base, [hard('lib2', 'lib')]] },
  { name: 'a hard link through a link of a lower layer', layers: [base, [hard('found', 'lib/old')]] },
  {
    name: 'a hard link to a large lower file with attributes',
    layers: [[file('big', 'x'.repeat(200_000), { mode: 0o4711, uid: 3, ...xattr('user.note', 'kept') })], [hard('same', 'big')]],
  },
  { name: 'a parent without an entry, over a link', layers: [base, [file('lib/new')]] },
  { name: 'a parent without an entry, over an absolute link', layers: [base, [file('bin/tool')]] },
  { name: 'a parent without an entry, over a directory with a mode and an owner', layers: [base, [file('usr/lib/new'), file('tmp/x')]] },
  { name: 'parents without an entry in the lowest layer', layers: [[file('a/b/c/d')]] },
  { name: 'a directory entry over a link', layers: [base, [dir('lib/'), file('lib/new')]] },
  { name: 'a directory entry over a link, after its child', layers: [base, [file('lib/new'), dir('lib/')]] },
  { name: 'a link over a directory', layers: [base, [link('etc', 'usr')]] },
  { name: 'a whiteout of a file', layers: [base, [file('etc/.wh.passwd', '')]] },
  { name: 'a whiteout of a directory', layers: [base, [file('.wh.tmp', '')]] },
  { name: 'a whiteout through a link', layers: [base, [file('lib/.wh.old', '')]] },
  { name: 'a whiteout of a link', layers: [base, [file('.wh.lib', '')]] },
  {
    name: 'a whiteout of nothing',
    layers: [base, [file('etc/.wh.nothing', ''), file('new/.wh.x', '')]],
    differs: { why: 'the directory that a whiteout names is made, empty: overlayfs can hide nothing without it', paths: ['/new'] },
  },
  {
    name: 'a whiteout of a directory that is added again',
    layers: [base, [file('.wh.etc', ''), dir('etc/', { mode: 0o700 }), file('etc/fresh')]],
  },
  {
    name: 'a directory that is added, then its whiteout',
    layers: [base, [dir('etc/', { mode: 0o700 }), file('etc/fresh'), file('.wh.etc', '')]],
    differs: { why: 'umoci leaves the directory with the time of unpacking, not with that of its entry', paths: ['/etc'] },
  },
  { name: 'a whiteout, and a file of its name added again above', layers: [base, [file('.wh.etc', '')], [file('etc/back')]] },
  { name: 'an opaque directory', layers: [base, [dir('etc/'), file('etc/.wh..wh..opq', ''), file('etc/only')]] },
  { name: 'an opaque directory, marked last and without an entry', layers: [base, [file('etc/only'), file('etc/.wh..wh..opq', '')]] },
  { name: 'an opaque root', layers: [base, [file('.wh..wh..opq', ''), file('only')]] },
  {
    name: 'types that replace each other between layers',
    layers: [
      [dir('a/'), file('a/x'), file('b'), link('c', 'a'), { name: 'd', type: 'fifo' }],
      [file('a'), dir('b/'), file('b/y'), file('c'), link('d', 'b')],
    ],
  },
  { name: 'types that replace each other in a layer', layers: [base, [file('etc', 'file'), dir('etc/'), file('etc/fresh')]] },
  {
    name: 'entries that occur twice',
    layers: [
      [
        file('a', '1'),
        file('a', '2', { mode: 0o600 }),
        dir('d/'),
        file('d/x'),
        dir('d/', { mode: 0o711, uid: 9 }),
        link('l', 'x'),
        link('l', 'y'),
      ],
    ],
  },
  { name: 'absolute and dotted paths', layers: [[file('/abs'), file('./dot'), file('.//double//slash'), dir('./d/./'), file('d/./e')]] },
  { name: 'a root with an entry, and layers without one', layers: [[dir('./', { mode: 0o711, uid: 4, gid: 5 }), file('a')], [file('b')]] },
  {
    name: 'long names (PAX)',
    layers: [[dir(`${'d'.repeat(120)}/`), file(`${'d'.repeat(120)}/${'f'.repeat(200)}`), link('l', 't'.repeat(300))]],
  },
  {
    name: 'long names (GNU)',
    layers: [`mkdir -p ${'d'.repeat(120)} && echo x > ${'d'.repeat(120)}/${'f'.repeat(200)}`],
    tar: ['--format=gnu'],
  },
  {
    name: 'sparse files (PAX)',
    layers: ['truncate -s 3000000 s && printf end | dd of=s bs=1 seek=2000000 conv=notrunc status=none && touch empty'],
    tar: ['--format=pax', '--sparse'],
  },
  {
    name: 'extended attributes',
    layers: [[file('a', 'x', xattr('user.note', 'one')), dir('d/', xattr('user.dir', 'two'))], [dir('d/', xattr('user.other', 'three'))]],
  },
  {
    name: 'attributes that command overlayfs, or belong to the machine that built the image',
    layers: [
      [
        dir('d/', {
          pax: { 'SCHILY.xattr.trusted.overlay.redirect': '/etc', 'SCHILY.xattr.trusted.mine': 'x', 'SCHILY.xattr.user.note': 'kept' },
        }),
      ],
    ],
    differs: { why: 'R-14: trusted attributes are not taken from an image', paths: ['/d'] },
  },
  {
    name: 'a character device 0/0',
    layers: [[{ name: 'zero', type: 'character-device', devmajor: 0, devminor: 0, mode: 0o600 }, file('a')]],
    differs: { why: 'overlayfs takes it for a whiteout, so no sandbox can have one', paths: ['/zero'] },
  },
  {
    name: 'devices and a fifo',
    layers: [
      [
        { name: 'null', type: 'character-device', devmajor: 1, devminor: 3, mode: 0o666 },
        { name: 'disk', type: 'block-device', devmajor: 8, devminor: 17, mode: 0o660, gid: 6 },
        { name: 'pipe', type: 'fifo', mode: 0o640 },
      ],
    ],
  },
  {
    name: 'a layer as umoci insert writes it: neither padding nor trailer',
    layers: [base, [file('last', 'no padding')]],
    edit: (archive) => archive.subarray(0, lastData(archive)),
  },
  { name: 'a layer without a trailer', layers: [[file('a', 'x'.repeat(512))]], edit: (archive) => archive.subarray(0, -1024) },
  {
    name: 'one zero block as a trailer, and bytes after it',
    layers: [[file('a')]],
    edit: (archive) => Buffer.concat([archive.subarray(0, -1024), Buffer.alloc(1024), Buffer.from('rest')]),
  },
  { name: 'empty layers', layers: [[], base, []] },
  { name: 'a layer of no bytes', layers: [base, []], edit: (archive) => (archive.length === 1024 ? Buffer.alloc(0) : archive) },
  { name: 'zstd', layers: [base, [file('lib/new')]], compression: 'zstd' },
  { name: 'layers that are not compressed', layers: [base, [file('x')]], compression: 'none' },
  { name: 'the same layer twice', layers: [base, [file('etc/.wh.passwd', '')], base] },
  { name: 'AUFS bookkeeping', layers: [[file('.wh..wh.aufs', ''), dir('.wh..wh.plnk/'), file('a')]] },
  {
    name: 'a path that climbs inside the image',
    layers: [[dir('a/'), file('a/../b')]],
    refused: { why: 'R-14: a path with .. is refused, wherever it leads', code: 'unsafe-archive' },
  },
  { name: 'links that climb out of the image', layers: [[link('up', '../../../../..')], [file('up/x')]] },
];

/** Where the data of the archive's last file ends: its trailer and the padding before it are zeros. */
function lastData(archive: Buffer): number {
  let end = archive.length;
  while (end > 0 && archive[end - 1] === 0) end--;
  return end;
}

export async function tarOf(entries: readonly Entry[]): Promise<Buffer> {
  const archive = pack();
  for (const { content, ...header } of entries) archive.entry({ mtime: time, ...header }, content ?? '');
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
