import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, existsSync, readFileSync } from 'node:fs';
import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { pack } from 'tar-stream';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { FakeClock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { digestOf, fileNameOf } from './digest.ts';
import type { EnsureOptions, PullProgress } from './images.ts';
import { ImageStore, type ImageStoreOptions } from './store.ts';
import {
  command,
  end,
  imageTools,
  makeLayout,
  RegistryProxy,
  requireTools,
  startRegistry,
  temporaryDirectory,
  type RegistryPeer,
} from './testing/peers.ts';

let directory: string;
let layout: string;
let registry: RegistryPeer;
let proxy: RegistryProxy;
let stores = 0;

beforeAll(async () => {
  requireTools(...imageTools);
  directory = await temporaryDirectory();
  layout = await makeLayout(directory);
  registry = await startRegistry(directory);
  await command('skopeo', 'copy', '-q', '--dest-tls-verify=false', `oci:${layout}:busybox`, `docker://${registry.host}/tools/busybox:1`);
});
afterAll(async () => {
  await registry?.stop();
  await rm(directory, { recursive: true, force: true });
});
beforeEach(async () => {
  const made = await new RegistryProxy(registry.host).listen();
  proxy = made;
  onTestFinished(() => made[Symbol.asyncDispose]());
});

async function openStore(options: Partial<ImageStoreOptions> = {}): Promise<ImageStore> {
  const lifetime = new AbortController();
  const store = new ImageStore({
    directory: join(directory, `store-${++stores}`),
    config: { insecureRegistries: [proxy.host] },
    logger: silentLogger,
    signal: lifetime.signal,
    ...options,
  });
  await store.start();
  onTestFinished(async () => {
    lifetime.abort();
    await store.stopped();
  });
  return store;
}

const patient = (more: Partial<EnsureOptions> = {}): EnsureOptions => ({ signal: new AbortController().signal, ...more });

interface Raw {
  readonly mediaType: string;
  readonly data: Buffer;
}

async function tarOf(content: string): Promise<Buffer> {
  const archive = pack();
  archive.entry({ name: 'content' }, content);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** Pushes by the registry's API what no tool here makes. */
async function push(repository: string, tag: string, raw: Raw, blobs: readonly Buffer[] = []): Promise<string> {
  const base = `http://${registry.host}/v2/${repository}`;
  for (const blob of blobs) {
    const start = await fetch(`${base}/blobs/uploads/`, { method: 'POST' });
    const location = new URL(start.headers.get('location') ?? '', base);
    location.searchParams.set('digest', digestOf(blob));
    const put = await fetch(location, {
      method: 'PUT',
      body: new Uint8Array(blob),
      headers: { 'content-type': 'application/octet-stream' },
    });
    expect(put.status).toBe(201);
  }
  const answer = await fetch(`${base}/manifests/${tag}`, {
    method: 'PUT',
    body: new Uint8Array(raw.data),
    headers: { 'content-type': raw.mediaType },
  });
  expect(answer.status).toBe(201);
  return digestOf(raw.data);
}

const oci = (kind: string): string => `application/vnd.oci.image.${kind}.v1+json`;

function imageOf(layer: Buffer, tar: Buffer, mediaType: string, architecture = 'amd64'): { manifest: Raw; blobs: Buffer[] } {
  const config = Buffer.from(
    JSON.stringify({ os: 'linux', architecture, config: { Cmd: [architecture] }, rootfs: { type: 'layers', diff_ids: [digestOf(tar)] } }),
  );
  const manifest = {
    schemaVersion: 2,
    mediaType: oci('manifest'),
    config: { mediaType: oci('config'), digest: digestOf(config), size: config.length },
    layers: [{ mediaType, digest: digestOf(layer), size: layer.length }],
  };
  return { manifest: { mediaType: oci('manifest'), data: Buffer.from(JSON.stringify(manifest)) }, blobs: [config, layer] };
}

describe('R-11: pulling from a registry', () => {
  test('an image that umoci made and skopeo pushed is unpacked as umoci unpacks it', async () => {
    const store = await openStore();
    const image = await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    expect(image.config).toMatchObject({ command: ['/bin/sh'], env: ['A=b'], workdir: '/etc' });
    expect(image.layers).toHaveLength(2);
    const oracle = join(directory, 'oracle');
    await command('umoci', 'unpack', '--image', `${layout}:busybox`, oracle);
    const merged = join(directory, 'merged');
    await mkdir(merged);
    await command('mount', '-t', 'overlay', 'overlay', '-o', `ro,lowerdir=${[...image.layers].reverse().join(':')}`, merged);
    try {
      await command('diff', '-r', '--no-dereference', join(oracle, 'rootfs'), merged);
      expect(existsSync(join(merged, 'etc/gone'))).toBe(false);
    } finally {
      await command('umount', merged);
    }
    // What was downloaded is not kept twice.
    expect(await readdir(join(directory, `store-${stores}`, 'blobs'))).toEqual([]);
  });

  test('a known image needs no registry; `always` asks it again', async () => {
    const store = await openStore();
    const first = await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    const asked = proxy.requests.length;
    expect(await store.ensure(`${proxy.host}/tools/busybox:1`, patient())).toEqual(first);
    expect(proxy.requests.length).toBe(asked);
    expect(await store.ensure(`${proxy.host}/tools/busybox:1`, patient({ policy: 'always' }))).toEqual(first);
    expect(proxy.requests.length).toBeGreaterThan(asked);
    const byDigest = await store.ensure(`${proxy.host}/tools/busybox@${first.digest}`, patient());
    expect(byDigest.digest).toBe(first.digest);
  });

  test('an index gives the image for the platform, with zstd layers too', async () => {
    const manifests = [];
    for (const architecture of ['amd64', 'arm64']) {
      const tar = await tarOf(architecture);
      const image = imageOf(zstdCompressSync(tar), tar, 'application/vnd.oci.image.layer.v1.tar+zstd', architecture);
      const digest = await push('multi', architecture, image.manifest, image.blobs);
      manifests.push({ mediaType: oci('manifest'), digest, size: image.manifest.data.length, platform: { os: 'linux', architecture } });
    }
    await push('multi', 'all', {
      mediaType: oci('index'),
      data: Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: oci('index'), manifests })),
    });
    for (const architecture of ['amd64', 'arm64']) {
      const store = await openStore({ platform: { os: 'linux', architecture } });
      const image = await store.ensure(`${proxy.host}/multi:all`, patient());
      expect(image.config.command).toEqual([architecture]);
      expect(readFileSync(join(image.layers[0] as string, 'content'), 'utf8')).toBe(architecture);
    }
    const other = await openStore({ platform: { os: 'linux', architecture: 'riscv64' } });
    await expect(other.ensure(`${proxy.host}/multi:all`, patient())).rejects.toMatchObject({
      code: 'image-not-found',
      hint: 'it has linux/amd64, linux/arm64',
    });
  });

  test('plain HTTP needs the explicit flag', async () => {
    const store = await openStore({ config: {} });
    await expect(store.ensure(`${proxy.host}/tools/busybox:1`, patient())).rejects.toMatchObject({
      code: 'registry-unreachable',
      message: `the registry ${proxy.host} speaks plain HTTP, which anyone on the network path can read and change`,
      hint: expect.stringContaining('--insecure'),
    });
    expect(proxy.requests).toEqual([]);
    await store.ensure(`${proxy.host}/tools/busybox:1`, patient({ insecure: true }));
  });

  test('a password is asked for, and taken from the credentials file', async () => {
    const guarded = await startRegistry(directory, { password: true });
    onTestFinished(() => guarded.stop());
    await command(
      'skopeo',
      'copy',
      '-q',
      '--dest-tls-verify=false',
      '--dest-creds',
      'drover:open-sesame',
      `oci:${layout}:busybox`,
      `docker://${guarded.host}/busybox:1`,
    );
    const config = { insecureRegistries: [guarded.host] };
    const stranger = await openStore({ config });
    await expect(stranger.ensure(`${guarded.host}/busybox:1`, patient())).rejects.toMatchObject({
      code: 'registry-denied',
      hint: expect.stringContaining('docker login'),
    });
    const credentialsFile = join(directory, 'docker.json');
    const write = (password: string): Promise<void> =>
      writeFile(
        credentialsFile,
        JSON.stringify({ auths: { [guarded.host]: { auth: Buffer.from(`drover:${password}`).toString('base64') } } }),
      );
    const store = await openStore({ config: { ...config, credentialsFile } });
    await write('wrong');
    await expect(store.ensure(`${guarded.host}/busybox:1`, patient())).rejects.toMatchObject({ code: 'registry-denied' });
    await write('open-sesame');
    expect((await store.ensure(`${guarded.host}/busybox:1`, patient())).layers).toHaveLength(2);
  });

  test('a token is fetched once for all requests, and does not follow a redirect to another host', async () => {
    let tokens = 0;
    const elsewhere = await new RegistryProxy(registry.host).listen();
    onTestFinished(() => elsewhere[Symbol.asyncDispose]());
    proxy.intercept = (request, response) => {
      if (request.url?.startsWith('/token') === true) {
        tokens++;
        expect(request.url).toContain('scope=repository%3Atools%2Fbusybox%3Apull');
        response.end(JSON.stringify({ token: 'the-token', expires_in: 300 }));
        return true;
      }
      if (request.url === '/v2/') return false;
      if (request.headers.authorization !== 'Bearer the-token') {
        response.writeHead(401, {
          'www-authenticate': `Bearer realm="http://${proxy.host}/token",service="test",scope="repository:tools/busybox:pull"`,
        });
        response.end();
        return true;
      }
      if (request.url?.includes('/blobs/') !== true) return false;
      response.writeHead(307, { location: `http://${elsewhere.host}${request.url}` });
      response.end();
      return true;
    };
    const store = await openStore();
    await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    expect(tokens).toBe(1);
    expect(elsewhere.requests.length).toBeGreaterThan(0);
    expect(elsewhere.requests.filter((request) => request.headers.authorization !== undefined)).toEqual([]);
  });

  test('a mirror is asked first, and the registry when the mirror has nothing', async () => {
    const empty = await new RegistryProxy(registry.host).listen();
    onTestFinished(() => empty[Symbol.asyncDispose]());
    empty.intercept = (_, response) => {
      response.writeHead(404).end();
      return true;
    };
    const store = await openStore({
      config: { insecureRegistries: [registry.host], mirrors: { [registry.host]: [`http://${empty.host}`, `http://${proxy.host}`] } },
    });
    await store.ensure(`${registry.host}/tools/busybox:1`, patient());
    expect(empty.requests.length).toBeGreaterThan(0);
    expect(proxy.blobRequests().length).toBe(3);
  });

  test('a cut connection goes on where it stopped, and errors of the server are tried again', async () => {
    proxy.cuts.push(200_000, 300_000);
    let failures = 2;
    proxy.intercept = (request, response) => {
      if (request.url?.includes('/manifests/') !== true || failures-- <= 0) return false;
      response.writeHead(503).end();
      return true;
    };
    const store = await openStore();
    await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    const offsets = proxy.requests.flatMap(({ headers }) =>
      headers.range === undefined ? [] : [Number(/^bytes=(\d+)-$/.exec(headers.range)?.[1])],
    );
    // A reset may lose what was under way: each goes on from what arrived.
    expect(offsets).toHaveLength(2);
    expect(offsets[0]).toBeGreaterThan(0);
    expect(offsets[0]).toBeLessThanOrEqual(200_000);
    expect(offsets[1]).toBeGreaterThan(offsets[0] as number);
    expect(offsets[1]).toBeLessThanOrEqual(500_000);
  });

  test('what is wrong is said clearly', async () => {
    const store = await openStore();
    await expect(store.ensure(`${proxy.host}/tools/nothing:1`, patient())).rejects.toMatchObject({ code: 'image-not-found' });
    await expect(store.ensure('NOT AN IMAGE', patient())).rejects.toMatchObject({ code: 'invalid-image-reference' });
    const tar = await tarOf('wrong');
    const layer = gzipSync(tar);
    const lying = imageOf(layer, Buffer.from('another tar'), 'application/vnd.oci.image.layer.v1.tar+gzip');
    await push('lying', 'diffid', lying.manifest, lying.blobs);
    await expect(store.ensure(`${proxy.host}/lying:diffid`, patient())).rejects.toMatchObject({
      code: 'corrupt-image',
      hint: expect.any(String),
    });
    proxy.intercept = (request, response) => {
      if (request.url?.includes(`/blobs/${digestOf(layer)}`) !== true) return false;
      response.end(Buffer.alloc(layer.length, 7));
      return true;
    };
    await expect(store.ensure(`${proxy.host}/lying:diffid`, patient())).rejects.toMatchObject({ code: 'corrupt-image' });
    // R-12: nothing of it is left.
    for (const folder of ['blobs', 'partial', 'layers', 'staging', 'images', 'references']) {
      expect(await readdir(join(directory, `store-${stores}`, folder))).toEqual([]);
    }
  });

  test('an unreachable registry is named', async () => {
    const gone = await new RegistryProxy(registry.host).listen();
    const { host } = gone;
    await gone[Symbol.asyncDispose]();
    const store = await openStore();
    await expect(store.ensure(`${host}/a:1`, patient())).rejects.toMatchObject({
      code: 'registry-unreachable',
      message: expect.stringContaining(host),
    });
  });

  test('a full disk is said, and freed of what did not fit', async () => {
    const small = join(directory, 'small');
    await mkdir(small);
    await command('mount', '-t', 'tmpfs', '-o', 'size=1500k', 'tmpfs', small);
    try {
      const store = await openStore({ directory: join(small, 'store') });
      await expect(store.ensure(`${proxy.host}/tools/busybox:1`, patient())).rejects.toMatchObject({
        code: 'disk-full',
        hint: expect.any(String),
      });
      expect(await readdir(join(small, 'store', 'staging'))).toEqual([]);
      await store.stopped();
    } finally {
      await command('umount', '-l', small);
    }
  });
});

describe('R-13: one build, under the agent’s lifetime', () => {
  function held(afterBytes: number): { reached: Promise<void>; release: () => void } {
    const reached = Promise.withResolvers<void>();
    const until = Promise.withResolvers<void>();
    proxy.hold = { afterBytes, until: until.promise, reached: reached.resolve };
    onTestFinished(() => until.resolve());
    return { reached: reached.promise, release: until.resolve };
  }

  test('many who wait make one download, and each hears the progress', async () => {
    const store = await openStore();
    const heard: PullProgress[][] = Array.from({ length: 8 }, () => []);
    const images = await Promise.all(
      heard.map((list) => store.ensure(`${proxy.host}/tools/busybox:1`, patient({ onProgress: (p) => list.push(p) }))),
    );
    expect(new Set(images.map((image) => image.digest)).size).toBe(1);
    expect(proxy.blobRequests().length).toBe(3);
    for (const list of heard) {
      const last = list.at(-1);
      expect(last?.doneBytes).toBe(last?.totalBytes);
      expect(last?.totalBytes).toBeGreaterThan(1_000_000);
    }
  });

  test('images share the layers they have in common', async () => {
    await command('skopeo', 'copy', '-q', '--dest-tls-verify=false', `oci:${layout}:busybox`, `docker://${registry.host}/tools/other:1`);
    const store = await openStore();
    const [one, two] = await Promise.all([
      store.ensure(`${proxy.host}/tools/busybox:1`, patient()),
      store.ensure(`${proxy.host}/tools/other:1`, patient()),
    ]);
    expect(two.layers).toEqual(one.layers);
    // Two configs, and each of the two layers once.
    expect(proxy.blobRequests().length).toBe(4);
  });

  test('a caller who gives up leaves the build running', async () => {
    const store = await openStore();
    const { reached, release } = held(300_000);
    const caller = new AbortController();
    const first = store.ensure(`${proxy.host}/tools/busybox:1`, { signal: caller.signal });
    await reached;
    caller.abort();
    await expect(first).rejects.toMatchObject({ code: 'cancelled' });
    const second = store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    release();
    expect((await second).layers).toHaveLength(2);
    expect(proxy.blobRequests().length).toBe(3);
  });

  test('a pull that takes too long ends by its own timeout; the next one goes on', async () => {
    const clock = new FakeClock(1_000_000);
    const where = join(directory, 'timed');
    const store = await openStore({ clock, pullTimeoutMs: 60_000, directory: where });
    const { reached, release } = held(300_000);
    const first = store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    first.catch(() => undefined);
    await reached;
    await clock.advance(60_001);
    await expect(first).rejects.toMatchObject({ code: 'timed-out' });
    release();
    proxy.hold = undefined;
    await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    expect(proxy.requests.some((request) => request.headers.range !== undefined)).toBe(true);
  });

  test('the agent is killed in mid-pull, and the next one finds the progress', async () => {
    const where = join(directory, 'killed');
    const { reached, release } = held(400_000);
    const script = join(directory, 'agent.ts');
    await writeFile(
      script,
      `import { ImageStore } from ${JSON.stringify(join(import.meta.dirname, 'store.ts'))};
       import { silentLogger } from ${JSON.stringify(import.meta.resolve('@drover/foundation/log'))};
       const signal = new AbortController().signal;
       const store = new ImageStore({ directory: ${JSON.stringify(where)}, config: { insecureRegistries: [${JSON.stringify(proxy.host)}] }, logger: silentLogger, signal });
       await store.start();
       await store.ensure(${JSON.stringify(`${proxy.host}/tools/busybox:1`)}, { signal });`,
    );
    const child = spawn(process.execPath, ['--conditions=development', script], { stdio: 'inherit' });
    onTestFinished(() => end(child));
    await reached;
    const partial = async (): Promise<number> => {
      const [file] = existsSync(join(where, 'partial')) ? await readdir(join(where, 'partial')) : [];
      return file === undefined ? 0 : readFileSync(join(where, 'partial', file)).length;
    };
    await expect.poll(partial, { timeout: 10_000 }).toBeGreaterThanOrEqual(400_000);
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
    const kept = await partial();
    release();
    proxy.hold = undefined;
    // What a crash may leave besides.
    await mkdir(join(where, 'staging', 'half'), { recursive: true });
    await mkdir(join(where, 'layers', fileNameOf(digestOf('unfinished'))));
    const store = await openStore({ directory: where });
    expect(await readdir(join(where, 'staging'))).toEqual([]);
    expect(await readdir(join(where, 'layers'))).toEqual([]);
    const image = await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    expect(image.layers).toHaveLength(2);
    expect(proxy.requests.map((request) => request.headers.range).filter((range) => range !== undefined)).toEqual([`bytes=${kept}-`]);
  });

  test('progress that a crash damaged is noticed, and downloaded again', async () => {
    const where = join(directory, 'damaged');
    await openStore({ directory: where });
    const index = JSON.parse(readFileSync(join(layout, 'index.json'), 'utf8')) as { manifests: { digest: string }[] };
    const manifest = JSON.parse(readFileSync(join(layout, 'blobs', (index.manifests[0]?.digest ?? '').replace(':', '/')), 'utf8')) as {
      layers: { digest: string }[];
    };
    appendFileSync(join(where, 'partial', fileNameOf(manifest.layers[0]?.digest ?? '')), Buffer.alloc(100_000));
    const store = await openStore({ directory: where });
    expect((await store.ensure(`${proxy.host}/tools/busybox:1`, patient())).layers).toHaveLength(2);
  });
});

describe('R-4: images without a registry', () => {
  test('archives and layouts of skopeo and umoci, and what docker save writes, old and new, give the same layers', async () => {
    const ociArchive = join(directory, 'oci.tar');
    const dockerArchive = join(directory, 'docker.tar');
    await command('skopeo', 'copy', '-q', `oci:${layout}:busybox`, `oci-archive:${ociArchive}:busybox`);
    await command('skopeo', 'copy', '-q', `oci:${layout}:busybox`, `docker-archive:${dockerArchive}:busybox:1`);
    await writeFile(`${dockerArchive}.gz`, gzipSync(readFileSync(dockerArchive)));
    // docker save since version 25: an image layout, with the old manifest.json beside it.
    const modern = join(directory, 'modern');
    const modernArchive = join(directory, 'modern.tar');
    await command('cp', '-r', layout, modern);
    interface Descriptors {
      readonly manifests: readonly { readonly digest: string }[];
      readonly config: { readonly digest: string };
      readonly layers: readonly { readonly digest: string }[];
    }
    const blobOf = (digest: string | undefined): string => `blobs/${(digest ?? '').replace(':', '/')}`;
    const read = (path: string): Descriptors => JSON.parse(readFileSync(join(layout, path), 'utf8')) as Descriptors;
    const manifest = read(blobOf(read('index.json').manifests[0]?.digest));
    const saved = [
      { Config: blobOf(manifest.config.digest), RepoTags: ['busybox:1'], Layers: manifest.layers.map((l) => blobOf(l.digest)) },
    ];
    await writeFile(join(modern, 'manifest.json'), JSON.stringify(saved));
    await command('tar', '-C', modern, '-cf', modernArchive, '.');
    const store = await openStore();
    const expected = (await store.ensure(`oci:${layout}:busybox`, patient())).layers;
    expect(expected).toHaveLength(2);
    for (const reference of [
      `oci:${layout}`,
      `oci-archive:${ociArchive}`,
      `oci-archive:${ociArchive}:busybox`,
      `docker-archive:${dockerArchive}`,
      `docker-archive:${dockerArchive}:busybox:1`,
      `docker-archive:${dockerArchive}.gz`,
      `docker-archive:${modernArchive}:busybox:1`,
      `oci-archive:${modernArchive}`,
    ]) {
      const own = await openStore();
      const image = await own.ensure(reference, patient());
      expect(
        image.layers.map((layer) => layer.split('/').at(-1)),
        reference,
      ).toEqual(expected.map((layer) => layer.split('/').at(-1)));
      expect(image.config.command).toEqual(['/bin/sh']);
    }
    await expect(store.ensure(`docker-archive:${dockerArchive}:other`, patient())).rejects.toMatchObject({
      code: 'image-not-found',
      hint: expect.stringContaining('busybox:1'),
    });
    await expect(store.ensure(`oci-archive:${directory}/none.tar`, patient())).rejects.toMatchObject({ code: 'image-not-found' });
    await expect(store.ensure(`oci-archive:${layout}/index.json`, patient())).rejects.toMatchObject({ code: 'corrupt-image' });
  });

  test('what is the same as before is written down no more than once a minute, nor is the end of each sandbox that used it', async () => {
    const where = join(directory, 'written');
    const clock = new FakeClock(1_000_000);
    const store = await openStore({ directory: where, clock });
    const files = async (): Promise<readonly number[]> => {
      const names = await Promise.all(
        ['images', 'references'].map(async (folder) => (await readdir(join(where, folder))).map((file) => join(where, folder, file))),
      );
      // A file that is written again is another file.
      return await Promise.all(names.flat().map(async (path) => (await stat(path)).ino));
    };
    const use = async (holder: string): Promise<void> => {
      const { digest } = await store.ensure(`dir:${layout}`, patient());
      await store.hold(digest, holder);
      await store.release(holder);
    };
    await use('sb_one');
    const before = await files();
    expect(before).toHaveLength(2);
    await clock.advance(59_000);
    await use('sb_two');
    expect(await files()).toEqual(before);
    await clock.advance(1_001);
    await use('sb_three');
    expect(await files()).not.toEqual(before);
    expect(await store.list()).toMatchObject([{ lastUsedAt: clock.now() }]);
  });

  test('dir: is the directory itself', async () => {
    const store = await openStore();
    const image = await store.ensure(`dir:${layout}`, patient());
    expect(image.layers).toEqual([layout]);
    expect((await store.ensure(`dir:${layout}`, patient())).digest).toBe(image.digest);
    await expect(store.ensure('dir:/', patient())).rejects.toMatchObject({ code: 'invalid-image-reference' });
    await expect(store.ensure('dir:/does/not/exist', patient())).rejects.toMatchObject({ code: 'image-not-found' });
    await store.remove(`dir:${layout}`);
    expect(existsSync(layout)).toBe(true);
  });
});

describe('R-15: what goes and what stays', () => {
  test('what is held stays, over a restart too; what is old and free goes', async () => {
    const where = join(directory, 'collected');
    const clock = new FakeClock(1_000_000);
    const store = await openStore({ directory: where, clock });
    const image = await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    await store.hold(image.digest, 'sb_one');
    await clock.advance(1000);
    expect(await store.prune(0)).toEqual({ removed: [], freedBytes: 0 });
    await expect(store.remove(`${proxy.host}/tools/busybox:1`)).rejects.toMatchObject({ code: 'image-in-use' });
    await store.stopped();

    const next = await openStore({ directory: where, clock });
    expect(await next.list()).toMatchObject([{ reference: `${proxy.host}/tools/busybox:1`, digest: image.digest, holders: 1 }]);
    expect(await next.prune(0)).toEqual({ removed: [], freedBytes: 0 });
    await next.retain(new Set(['sb_other']));
    // Young: it was in use until now.
    expect((await next.prune(60_000)).removed).toEqual([]);
    await clock.advance(60_001);
    const pruned = await next.prune(60_000);
    expect(pruned.removed).toEqual([`${proxy.host}/tools/busybox:1`]);
    expect(pruned.freedBytes).toBeGreaterThan(1_000_000);
    expect(await readdir(join(where, 'layers'))).toEqual([]);
    await expect(next.hold(image.digest, 'sb_two')).rejects.toMatchObject({ code: 'image-not-found' });
    await expect(next.remove('debian')).rejects.toMatchObject({ code: 'image-not-found' });
  });

  test('a layer goes with the last image that has it', async () => {
    const store = await openStore();
    const image = await store.ensure(`oci:${layout}:busybox`, patient());
    await store.ensure(`${proxy.host}/tools/busybox:1`, patient());
    await store.remove(`oci:${layout}:busybox`);
    expect(image.layers.every((layer) => existsSync(layer))).toBe(true);
    await store.remove(`${proxy.host}/tools/busybox:1`);
    expect(image.layers.some((layer) => existsSync(layer))).toBe(false);
  });

  test('R-12: layers that a power cut may have damaged are not believed', async () => {
    const where = join(directory, 'power');
    const store = await openStore({ directory: where });
    const image = await store.ensure(`oci:${layout}:busybox`, patient());
    await store.stopped();
    for (const file of await readdir(join(where, 'layer-records'))) {
      const path = join(where, 'layer-records', file);
      const record = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
      expect(record['durable']).toBe(true);
      await writeFile(path, JSON.stringify({ ...record, durable: false, boot: 'another' }));
    }
    const next = await openStore({ directory: where });
    expect(image.layers.some((layer) => existsSync(layer))).toBe(false);
    expect((await next.ensure(`oci:${layout}:busybox`, patient())).layers.every((layer) => existsSync(layer))).toBe(true);
  });
});
