import { createHash } from 'node:crypto';
import { copyFile, mkdir, readFile, realpath, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { execa } from 'execa';
import { eventually } from './drover.ts';

/** Runs a program to its end; rejects with what it said. */
export async function tool(program: string, ...args: readonly string[]): Promise<string> {
  return (await execa(program, args)).stdout;
}

/** A root file system of busybox in `directory`, and more files: path → how to make it. */
export async function busyboxRoot(directory: string): Promise<string> {
  await mkdir(join(directory, 'bin'), { recursive: true });
  await mkdir(join(directory, 'etc'));
  await copyFile('/bin/busybox', join(directory, 'bin/busybox'));
  for (const name of ['sh', 'cat', 'ls', 'sleep', 'echo', 'true']) await symlink('busybox', join(directory, 'bin', name));
  return directory;
}

/** Copies the shared libraries that programs of this machine load into a root, each to the path under which it is looked for. */
export async function copyLibraries(programs: readonly string[], root: string): Promise<void> {
  const lists = await Promise.all(programs.map(async (program) => await tool('ldd', await realpath(program))));
  for (const library of new Set(lists.flatMap((list) => [...list.matchAll(/(?:=> |^\s+)(\/\S+)/gm)].map(([, path = '']) => path)))) {
    await mkdir(dirname(join(root, library)), { recursive: true });
    await copyFile(library, join(root, library));
  }
}

/** Adds a layer to `layout:tag` as umoci does: what `change` does to the root. Gives the reference of the new tag. */
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

/** The digest of the manifest that a registry gives for a tag. */
export async function digestInRegistry(host: string, repository: string, tag: string): Promise<string> {
  const accept = ['application/vnd.oci.image.index.v1+json', 'application/vnd.oci.image.manifest.v1+json'].join(', ');
  const response = await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, { headers: { accept } });
  if (!response.ok) throw new Error(`${repository}:${tag} is not in the registry: ${response.status}`);
  return `sha256:${createHash('sha256')
    .update(Buffer.from(await response.arrayBuffer()))
    .digest('hex')}`;
}

/** A Docker Engine of its own, for `docker import` and `docker save` alone: no networks, no firewall rules. */
export class Docker implements AsyncDisposable {
  readonly #directory: string;
  readonly #daemon: ReturnType<typeof startDaemon>;
  #ended = false;

  private constructor(directory: string) {
    this.#directory = directory;
    this.#daemon = startDaemon(directory);
    void this.#daemon.then(() => (this.#ended = true));
  }

  /** @param directory its own; short, as its sockets are in it */
  static async start(directory: string): Promise<Docker> {
    await mkdir(directory, { recursive: true });
    const docker = new Docker(directory);
    try {
      await eventually('dockerd answers', async () => {
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
    // It mounts its own directory over itself, and takes that away only when it ends in order.
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

/** The size of the blob with the most bytes in an image of a layout, and its digest. */
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
