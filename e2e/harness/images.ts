import { createHash } from 'node:crypto';
import { copyFile, mkdir, readFile, realpath, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { execa } from 'execa';
import { eventually } from './drover.ts';

/** Runs a program to its end and returns its standard output. Rejects with its output when it fails. */
export async function tool(program: string, ...args: readonly string[]): Promise<string> {
  return (await execa(program, args)).stdout;
}

/** Fills a directory with a root file system of busybox, and returns its path. */
export async function busyboxRoot(directory: string): Promise<string> {
  await mkdir(join(directory, 'bin'), { recursive: true });
  await mkdir(join(directory, 'etc'));
  await copyFile('/bin/busybox', join(directory, 'bin/busybox'));
  for (const name of ['sh', 'cat', 'ls', 'sleep', 'echo', 'true']) await symlink('busybox', join(directory, 'bin', name));
  return directory;
}

/** Copies the shared libraries of this machine's programs into a root, each to the path under which the loader searches for it. */
export async function copyLibraries(programs: readonly string[], root: string): Promise<void> {
  const lists = await Promise.all(programs.map(async (program) => await tool('ldd', await realpath(program))));
  for (const library of new Set(lists.flatMap((list) => [...list.matchAll(/(?:=> |^\s+)(\/\S+)/gm)].map(([, path = '']) => path)))) {
    await mkdir(dirname(join(root, library)), { recursive: true });
    await copyFile(library, join(root, library));
  }
}

/** Adds the tag `to` to a layout: the image `from` and a layer, made by umoci, with the effects of `change` on the root. */
export async function addLayer(layout: string, from: string, to: string, change: (root: string) => Promise<void>): Promise<void> {
  const bundle = join(layout, '..', `bundle-${to}`);
  await tool('umoci', 'unpack', '--image', `${layout}:${from}`, bundle);
  await change(join(bundle, 'rootfs'));
  await tool('umoci', 'repack', '--image', `${layout}:${to}`, bundle);
}

/** Copies an image of a layout into a registry that speaks plain HTTP. */
export async function pushImage(layout: string, tag: string, target: string, ...args: readonly string[]): Promise<void> {
  await tool('skopeo', 'copy', '-q', '--dest-tls-verify=false', ...args, `oci:${layout}:${tag}`, `docker://${target}`);
}

/** Returns the digest of the manifest that a registry serves for a tag. */
export async function digestInRegistry(host: string, repository: string, tag: string): Promise<string> {
  const accept = ['application/vnd.oci.image.index.v1+json', 'application/vnd.oci.image.manifest.v1+json'].join(', ');
  const response = await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, { headers: { accept } });
  if (!response.ok) throw new Error(`${repository}:${tag} is not in the registry: ${response.status}`);
  return `sha256:${createHash('sha256')
    .update(Buffer.from(await response.arrayBuffer()))
    .digest('hex')}`;
}

/** A separate Docker Engine without networks and firewall rules, for `docker import` and `docker save` only. */
export class Docker implements AsyncDisposable {
  readonly #directory: string;
  readonly #daemon: ReturnType<typeof startDaemon>;
  #ended = false;

  private constructor(directory: string) {
    this.#directory = directory;
    this.#daemon = startDaemon(directory);
    void this.#daemon.then(() => (this.#ended = true));
  }

  /** @param directory holds its sockets, so the path must be short */
  static async start(directory: string): Promise<Docker> {
    await mkdir(directory, { recursive: true });
    const docker = new Docker(directory);
    try {
      await eventually('dockerd responds', async () => {
        if (docker.#ended) throw new Error('dockerd ended instead');
        return (await execa('docker', ['-H', docker.#socket, 'version'], { reject: false })).exitCode === 0;
      });
      return docker;
    } catch (error) {
      await docker[Symbol.asyncDispose]();
      throw error;
    }
  }

  get #socket(): string {
    return `unix://${join(this.#directory, 'docker.sock')}`;
  }

  async run(...args: readonly string[]): Promise<string> {
    return await tool('docker', '-H', this.#socket, ...args);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Its containerd ends with it.
    this.#daemon.kill('SIGTERM');
    await this.#daemon;
    // The daemon bind-mounts its own directory, and unmounts it only on an orderly exit.
    await execa('umount', ['-l', join(this.#directory, 'data')], { reject: false });
  }
}

function startDaemon(directory: string) {
  return execa(
    'dockerd',
    [
      `--data-root=${join(directory, 'data')}`,
      `--exec-root=${join(directory, 'exec')}`,
      `--pidfile=${join(directory, 'pid')}`,
      `--host=unix://${join(directory, 'docker.sock')}`,
      '--storage-driver=vfs',
      '--iptables=false',
      '--ip6tables=false',
      '--bridge=none',
    ],
    { reject: false, stdin: 'ignore', stdout: 'ignore', stderr: 'ignore', forceKillAfterDelay: 20_000, extendEnv: true },
  );
}

/** Returns the size and digest of the largest layer of an image in a layout. */
export async function largestLayer(layout: string, tag: string): Promise<{ readonly digest: string; readonly size: number }> {
  interface Descriptor {
    readonly digest: string;
    readonly size: number;
    readonly annotations?: Record<string, string>;
  }
  const read = async (path: string): Promise<unknown> => JSON.parse(await readFile(join(layout, path), 'utf8')) as unknown;
  const { manifests } = (await read('index.json')) as { manifests: Descriptor[] };
  const entry = manifests.find(({ annotations }) => annotations?.['org.opencontainers.image.ref.name'] === tag);
  if (entry === undefined) throw new Error(`the layout has no ${tag}`);
  const { layers } = (await read(join('blobs', ...entry.digest.split(':')))) as { layers: Descriptor[] };
  return layers.reduce((most, layer) => (layer.size > most.size ? layer : most));
}
