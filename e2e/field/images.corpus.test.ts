import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  command,
  corpus,
  digestOf,
  ImageStore,
  parseDigest,
  requireTools,
  tarOf,
  temporaryDirectory,
  type CorpusImage,
} from '@drover/agent/images/testing';
import { silentLogger } from '@drover/foundation/log';

let directory: string;
let store: ImageStore;
const lifetime = new AbortController();
/** A later time than this does not come from the image. */
const startedAt = Date.now();

beforeAll(async () => {
  requireTools(['/usr/bin/umoci', 'umoci'], ['/usr/bin/tar', 'tar']);
  directory = await temporaryDirectory();
  store = new ImageStore({ directory: join(directory, 'store'), logger: silentLogger, signal: lifetime.signal });
  await store.start();
});
afterAll(async () => {
  lifetime.abort();
  await store?.stopped();
  await rm(directory, { recursive: true, force: true });
});

const compressors = {
  none: (data: Buffer) => data,
  gzip: (data: Buffer) => gzipSync(data),
  zstd: (data: Buffer) => zstdCompressSync(data),
};
const mediaTypes = { none: 'tar', gzip: 'tar+gzip', zstd: 'tar+zstd' };

async function archiveOf(image: CorpusImage, layer: CorpusImage['layers'][number]): Promise<Buffer> {
  if (typeof layer !== 'string') return await tarOf(layer);
  const source = await mkdtemp(join(directory, 'source-'));
  await command('sh', '-ec', `cd '${source}'; ${layer}`);
  const path = `${source}.tar`;
  await command('tar', '--numeric-owner', ...(image.tar ?? []), '-C', source, '-cf', path, '.');
  return Buffer.from(await command('base64', '-w0', path), 'base64');
}

/** Writes an OCI layout with two tags of the image: `ours` with the image's own compression, and `umoci` in a form that umoci can read. */
async function layoutOf(image: CorpusImage): Promise<string> {
  const layout = await mkdtemp(join(directory, 'layout-'));
  await mkdir(join(layout, 'blobs', 'sha256'), { recursive: true });
  const put = async (data: Buffer | string, mediaType: string): Promise<{ mediaType: string; digest: string; size: number }> => {
    const digest = digestOf(data);
    await writeFile(join(layout, 'blobs', 'sha256', parseDigest(digest).hex), data);
    return { mediaType, digest, size: Buffer.byteLength(data) };
  };
  const archives: Buffer[] = [];
  for (const layer of image.layers) {
    const archive = await archiveOf(image, layer);
    archives.push(image.edit?.(archive) ?? archive);
  }
  const config = JSON.stringify({
    architecture: process.arch === 'x64' ? 'amd64' : process.arch,
    os: 'linux',
    config: {},
    rootfs: { type: 'layers', diff_ids: archives.map((archive) => digestOf(archive)) },
  });
  const type = 'application/vnd.oci.image';
  const manifests = [];
  for (const [tag, compression] of [['ours', image.compression ?? 'gzip'] as const, ['umoci', 'gzip'] as const]) {
    const layers = [];
    for (const archive of archives)
      layers.push(await put(compressors[compression](archive), `${type}.layer.v1.${mediaTypes[compression]}`));
    const manifest = {
      schemaVersion: 2,
      mediaType: `${type}.manifest.v1+json`,
      config: await put(config, `${type}.config.v1+json`),
      layers,
    };
    const descriptor = await put(JSON.stringify(manifest), `${type}.manifest.v1+json`);
    manifests.push({ ...descriptor, annotations: { 'org.opencontainers.image.ref.name': tag } });
  }
  await writeFile(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }));
  await writeFile(join(layout, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests }));
  return layout;
}

/** Describes a tree, one line for each path: type, mode, owner, size and time, link target, hard links, content, attributes. */
async function treeOf(root: string): Promise<Record<string, string>> {
  return JSON.parse(await command('python3', '-c', reader, root, String(startedAt / 1000))) as Record<string, string>;
}

const reader = `
import os, sys, json, stat, hashlib
root = os.fsencode(sys.argv[1]); tree = {}; first = {}
def read(path, name):
    try: s = os.lstat(path)
    except FileNotFoundError: tree[name] = 'in readdir only'; return
    kind = stat.S_IFMT(s.st_mode); line = [stat.filemode(s.st_mode), "%d:%d" % (s.st_uid, s.st_gid)]
    if name != "/": line.append(str(int(s.st_mtime)) if s.st_mtime < float(sys.argv[2]) else "now")
    if stat.S_ISREG(kind): line += [str(s.st_size), hashlib.sha256(open(path, "rb").read()).hexdigest()[:12]]
    if stat.S_ISLNK(kind): line.append("-> " + os.fsdecode(os.readlink(path)))
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind): line.append("%d,%d" % (os.major(s.st_rdev), os.minor(s.st_rdev)))
    if not stat.S_ISDIR(kind): line.append("same file as " + first.setdefault(s.st_ino, name))
    line += ["%s=%s" % (a, os.getxattr(path, a, follow_symlinks=False).hex()) for a in sorted(os.listxattr(path, follow_symlinks=False)) if not a.startswith("trusted.overlay.")]
    tree[name] = " ".join(line)
    if stat.S_ISDIR(kind):
        for entry in sorted(os.listdir(path)): read(path + b"/" + entry, (name if name != "/" else "") + "/" + repr(os.fsdecode(entry))[1:-1])
read(root, "/")
print(json.dumps(tree))
`;

/** Returns the tree of the image's layers as a sandbox would see it. */
async function ours(layout: string): Promise<Record<string, string>> {
  const handle = await store.ensure(`oci:${layout}:ours`, { signal: lifetime.signal });
  const target = await mkdtemp(join(directory, 'merged-'));
  const below = await mkdtemp(join(directory, 'below-'));
  const layers = [...handle.layers.toReversed(), below].join(':');
  await command('mount', '-t', 'overlay', 'overlay', '-o', `ro,lowerdir=${layers}`, target);
  try {
    const tree = await treeOf(target);
    // The runtime sets the root's owner and mode from this layer.
    const { '/': root } = handle.rootLayer === undefined ? tree : await treeOf(handle.rootLayer);
    return { ...tree, '/': root ?? '' };
  } finally {
    await command('umount', target);
  }
}

async function umocis(layout: string): Promise<Record<string, string>> {
  const bundle = `${layout}-bundle`;
  await command('umoci', 'unpack', '--image', `${layout}:umoci`, bundle);
  return await treeOf(join(bundle, 'rootfs'));
}

describe('R-11: an image has the tree that umoci unpacks:', () => {
  test.concurrent.each(corpus.map((image) => [image.name, image] as const))('%s', async (_, image) => {
    const layout = await layoutOf(image);
    if (image.refused !== undefined) {
      await expect(ours(layout), image.refused.why).rejects.toMatchObject({ code: image.refused.code });
      await umocis(layout);
      return;
    }
    const [mine, theirs] = await Promise.all([ours(layout), umocis(layout)]);
    for (const path of image.differs?.paths ?? []) {
      expect(mine[path], image.differs?.why).not.toEqual(theirs[path]);
      delete mine[path];
      delete theirs[path];
    }
    expect(mine).toEqual(theirs);
  });
});
