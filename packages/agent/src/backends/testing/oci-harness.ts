import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, rmdir, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { DroverError, errnoOf, newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { initPort } from '@drover/init';
import { processStart } from '@drover/linux';
import type { ImageHandle, Submount } from '../../images/index.ts';
import type { Network, NetworkAttachment } from '../../network/index.ts';
import { noLimits, type Backend, type Limits, type StartRequest } from '../backend.ts';
import { prepareInitDirectory } from '../oci/init-directory.ts';
import { OciBackend, type OciBackendOptions } from '../oci/oci-backend.ts';
import { override } from '../override.ts';
import { limitsOf, type Behaviour, type Harness } from './conformance.ts';

const run = promisify(execFile);
/** Of this process alone, so that concurrent test files do not sweep each other's. */
const cgroupParent = `/drover-test-${process.pid}`;
const here = fileURLToPath(new URL('.', import.meta.url));

export type Overrides = Partial<StartRequest> & { readonly layers?: readonly string[]; readonly submounts?: readonly Submount[] };

export interface OciHarness extends Harness {
  readonly backend: OciBackend;
  readonly directory: string;
  readonly stateDirectory: string;
  readonly cgroupParent: string;
  readonly initDirectory: string;
  /** A root that contains busybox. */
  readonly busybox: string;
  requestOf(argv: readonly string[], overrides?: Overrides): Promise<StartRequest>;
  /** Another backend over the same host, which is not open yet. */
  make(options?: Partial<OciBackendOptions>): OciBackend;
  /** Another backend over the same host. */
  open(options?: Partial<OciBackendOptions>): Promise<OciBackend>;
  prestart(): Promise<SandboxId>;
  /** Makes a standby in another process, which is killed. */
  prestartAndCrash(): Promise<SandboxId>;
}

/** A harness for the conformance suite. */
export async function openOciSuite(program: string, ahead: 'standby' | 'nothing' = 'nothing'): Promise<Harness> {
  const harness = await openOciHarness(program, ahead);
  const suite = (backend: OciBackend): Backend =>
    ahead === 'nothing' ? backend : override(backend, { create: async (...args) => await createFromStandby(backend, ...args) });
  return { ...harness, backend: suite(harness.backend), restarted: async () => suite(await harness.open()) };
}

export async function createFromStandby(backend: OciBackend, request: StartRequest, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await backend.create(request, signal, await backend.prestart(signal));
}

/** A real host for the OCI backend: busybox as root, a network namespace behind a veth pair, the small init of this directory. */
export async function openOciHarness(program: string, ahead: 'standby' | 'nothing' = 'nothing'): Promise<OciHarness> {
  const directory = await mkdtemp(join(tmpdir(), 'drover-oci-'));
  await chmod(directory, 0o711);
  const namespace = await openNamespace();
  const network = new SharedNamespace(namespace.attachments);
  const stateDirectory = join(directory, 'state');
  await mkdir(stateDirectory);
  const busybox = await unpackBusybox(join(directory, 'busybox'));
  const initDirectory = await prepareInitDirectory(directory, { nodePath: process.execPath, bundlePath: join(here, 'init.cjs') });
  const images = new FixedImages();
  const settings = { stateDirectory, cgroupParent, program };
  const opened: OciBackend[] = [];
  const make: OciHarness['make'] = (options) => openBackend(settings, initDirectory, images, network, options);
  const open: OciHarness['open'] = async (options) => {
    const backend = make(options);
    opened.push(backend);
    await backend.open(new Set());
    return backend;
  };
  const backend = await open();

  const requestOf: OciHarness['requestOf'] = async (argv, { layers = [busybox], submounts = [], ...overrides } = {}) => {
    const id = newSandboxId();
    const runDirectory = join(directory, `run-${id}`);
    await mkdir(runDirectory, { mode: 0o700 });
    return requestFor({ id, runDirectory, image: images.add(layers, submounts), limits: noLimits }, argv, overrides);
  };
  const crash = async (act: CrashOrder['act'], request: StartRequest, midwayMs?: number): Promise<string> => {
    const argv = behaviours.get(request.runDirectory) ?? [];
    const { id, runDirectory, limits } = request;
    const attachments = [network.next(), network.next()];
    const order: CrashOrder = { act, settings, initDirectory, attachments, layers: [busybox], argv, id, runDirectory, limits };
    const args = ['--conditions=development', join(here, 'create-child.ts'), JSON.stringify(order)];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const closed = once(child, 'close');
    let output = '';
    child.stdout.on('data', (data: Buffer) => (output += data.toString()));
    const awaited = midwayMs === undefined ? 'done' : 'begin';
    while (!output.includes(awaited))
      await Promise.race([once(child.stdout, 'data'), closed.then(() => Promise.reject(new Error('the child ended')))]);
    if (midwayMs !== undefined) await new Promise((resolve) => setTimeout(resolve, midwayMs));
    child.kill('SIGKILL');
    await closed;
    return output;
  };

  return {
    backend,
    directory,
    stateDirectory,
    cgroupParent,
    initDirectory,
    busybox,
    requestOf,
    make,
    open,
    restarted: open,
    prestart: async () => {
      const standby = await backend.prestart(AbortSignal.timeout(20_000));
      if (standby === undefined) throw new Error('this host makes no standbys');
      return standby;
    },
    request: async (behaviour, limits: Partial<Limits> = {}) => await requestOf(argvOf(behaviour), { limits: limitsOf(limits) }),
    again: (request, behaviour) => requestFor(request, argvOf(behaviour)),
    createAndCrash: async (request, midwayMs) =>
      void (await crash(ahead === 'nothing' ? 'create' : 'create from standby', request, midwayMs)),
    prestartAndCrash: async () => (await crash('prestart', await requestOf([]))).split('\n')[1] as SandboxId,
    leftovers: async (id) => [...network.leftovers(id), ...images.leftovers(id), ...(await leftoversOf(id, stateDirectory))],
    close: async () => {
      try {
        await backend.sweep(new Set());
      } finally {
        for (const each of opened) await each.close();
        await namespace.close();
        for (const path of await cgroupsNamed(cgroupParent.slice(1))) await rmdir(path);
        await rm(directory, { recursive: true, force: true });
      }
    },
  };
}

type Settings = Pick<OciBackendOptions, 'stateDirectory' | 'cgroupParent' | 'program'>;

/** What the process of `create-child.ts` does. */
export interface CrashOrder extends Pick<StartRequest, 'id' | 'runDirectory' | 'limits'> {
  readonly act: 'create' | 'create from standby' | 'prestart';
  readonly settings: Settings;
  readonly initDirectory: string;
  readonly attachments: readonly NetworkAttachment[];
  readonly layers: readonly string[];
  readonly argv: readonly string[];
}

export async function openCrashing(order: CrashOrder): Promise<{ backend: OciBackend; request: StartRequest }> {
  const images = new FixedImages();
  const backend = openBackend(order.settings, order.initDirectory, images, new SharedNamespace([...order.attachments]));
  await backend.open(new Set());
  const { id, runDirectory, limits } = order;
  return { backend, request: requestFor({ id, runDirectory, image: images.add(order.layers, []), limits }, order.argv) };
}

function openBackend(
  settings: Settings,
  initDirectory: string,
  images: FixedImages,
  network: SharedNamespace,
  options: Partial<OciBackendOptions> = {},
): OciBackend {
  const prepareInit = async (): Promise<string> => await Promise.resolve(initDirectory);
  return new OciBackend({ ...settings, images, network, prepareInit, logger: silentLogger, ...options });
}

/** Which command a run directory's config names; for the process of `create-child.ts`. */
const behaviours = new Map<string, readonly string[]>();

function requestFor(
  base: Pick<StartRequest, 'id' | 'runDirectory' | 'image' | 'limits'>,
  argv: readonly string[],
  overrides: Partial<StartRequest> = {},
): StartRequest {
  const { runDirectory } = base;
  behaviours.set(runDirectory, argv);
  return {
    hostname: 'box',
    mounts: [],
    ...base,
    complete: async ({ addresses }) => {
      const path = join(runDirectory, 'config.json');
      await rm(path, { force: true });
      const config = { listen: { host: addresses.address, port: initPort }, main: { argv } };
      await writeFile(path, JSON.stringify(config), { mode: 0o400 });
    },
    opening: async () => await Promise.resolve(),
    ...overrides,
  };
}

/** Images whose layers are directories of the test. */
class FixedImages {
  readonly #images = new Map<string, ImageHandle>();
  readonly #holders = new Set<string>();

  add(layers: readonly string[], submounts: readonly Submount[]): string {
    const reference = `fixed-${this.#images.size}`;
    const config = { entrypoint: [], command: [], env: [], workdir: '/', user: '', stopSignal: '' };
    this.#images.set(reference, { digest: `sha256:${reference}`, layers, submounts, config });
    return reference;
  }

  async ensure(reference: string): Promise<ImageHandle> {
    const found = this.#images.get(reference);
    if (found === undefined) throw new DroverError('image-not-found', `there is no image ${reference}`);
    return await Promise.resolve(found);
  }

  async hold(_digest: string, holder: string): Promise<void> {
    this.#holders.add(holder);
    await Promise.resolve();
  }

  async release(holder: string): Promise<void> {
    this.#holders.delete(holder);
    await Promise.resolve();
  }

  async retain(holders: ReadonlySet<string>): Promise<void> {
    for (const holder of this.#holders) if (!holders.has(holder)) this.#holders.delete(holder);
    await Promise.resolve();
  }

  leftovers(id: SandboxId): readonly string[] {
    return this.#holders.has(id) ? [`image held for ${id}`] : [];
  }
}

/** One network namespace for all sandboxes of a test file, with an address for each: the backend only has to join it. */
class SharedNamespace implements Network {
  readonly #attachments: NetworkAttachment[];
  readonly #held = new Map<SandboxId, NetworkAttachment>();

  constructor(attachments: NetworkAttachment[]) {
    this.#attachments = attachments;
  }

  next(): NetworkAttachment {
    const attachment = this.#attachments.shift();
    if (attachment === undefined) throw new Error('the test network has no further address');
    return attachment;
  }

  async start(): Promise<void> {
    await Promise.resolve();
  }

  async acquire(id: SandboxId, reserved?: NetworkAttachment): Promise<NetworkAttachment> {
    const attachment = this.#held.get(id) ?? reserved ?? this.next();
    this.#held.set(id, attachment);
    return await Promise.resolve(attachment);
  }

  async reserve(): Promise<NetworkAttachment> {
    return await Promise.resolve(this.next());
  }

  async unreserve(): Promise<void> {
    await Promise.resolve();
  }

  async release(id: SandboxId): Promise<void> {
    this.#held.delete(id);
    await Promise.resolve();
  }

  async applyPolicy(id: SandboxId): Promise<void> {
    await this.#must(id);
  }

  async setCut(id: SandboxId): Promise<void> {
    await this.#must(id);
  }

  async setRegistrationClosed(id: SandboxId): Promise<void> {
    await this.#must(id);
  }

  holderOf(): undefined {
    return undefined;
  }

  async close(): Promise<void> {
    await Promise.resolve();
  }

  leftovers(id: SandboxId): readonly string[] {
    return this.#held.has(id) ? [`address of ${id}`] : [];
  }

  async #must(id: SandboxId): Promise<void> {
    if (!this.#held.has(id)) throw new DroverError('sandbox-not-found', `${id} has no network`);
    await Promise.resolve();
  }
}

function argvOf(behaviour: Behaviour): string[] {
  const shell = (script: string): string[] => ['/bin/sh', '-c', script];
  switch (behaviour.kind) {
    case 'run':
      return ['/bin/sleep', '600'];
    case 'exit':
      return shell(`exit ${behaviour.code}`);
    case 'die':
      return shell(`kill -${behaviour.signal.slice(3)} $$`);
    case 'missing-program':
      return ['/bin/no-such-program'];
    case 'eat-memory':
      // It searches for the last line of an endless file.
      return ['/bin/tail', '/dev/zero'];
    case 'burn-cpu':
      return shell('while :; do :; done');
    case 'fork':
      return shell(`i=0; while [ $i -lt ${behaviour.processes} ]; do sleep 60 & i=$((i+1)); done; exit 0`);
    default:
      return shell('[ -e /made ] && exit 0; : > /made; exit 1');
  }
}

/** Unpacks busybox-static: a root of one program and its names. */
async function unpackBusybox(root: string): Promise<string> {
  await access('/bin/busybox').catch(() => {
    throw new Error('these tests need busybox: apt-get install busybox-static');
  });
  await mkdir(join(root, 'bin'), { recursive: true });
  await cp('/bin/busybox', join(root, 'bin/busybox'), { dereference: true });
  for (const name of (await run('/bin/busybox', ['--list'])).stdout.trim().split('\n')) {
    if (name !== 'busybox') await symlink('busybox', join(root, 'bin', name));
  }
  return root;
}

async function openNamespace(): Promise<{ readonly attachments: NetworkAttachment[]; readonly close: () => Promise<void> }> {
  const name = `drt${process.pid}`;
  const subnet = process.pid % 250;
  const addresses = Array.from({ length: 120 }, (_, i) => `10.251.${subnet}.${i + 2}`);
  const close = async (): Promise<void> => {
    // The pair is deleted with the namespace of its other end.
    await run('ip', ['netns', 'del', name]);
  };
  await run('ip', ['netns', 'add', name]);
  try {
    await batch(
      [],
      [`link add ${name} type veth peer name eth0 netns ${name}`, `addr add 10.251.${subnet}.1/24 dev ${name}`, `link set ${name} up`],
    );
    const inside = addresses.map((address) => `addr add ${address}/24 dev eth0`);
    await batch(['-n', name], [...inside, 'link set eth0 up', 'link set lo up']);
  } catch (error) {
    await close();
    throw error;
  }
  const attachments = addresses.map((address) => ({
    namespacePath: `/run/netns/${name}`,
    address,
    gatewayAddress: `10.251.${subnet}.1`,
    proxyPort: 3128,
    controlPort: 9181,
    interface: name,
  }));
  return { attachments, close };
}

async function batch(options: readonly string[], lines: readonly string[]): Promise<void> {
  const child = spawn('ip', [...options, '-batch', '-'], { stdio: ['pipe', 'ignore', 'inherit'] });
  child.stdin.end(`${lines.join('\n')}\n`);
  const [code] = (await once(child, 'close')) as [number];
  if (code !== 0) throw new Error(`ip -batch failed with ${code}`);
}

/** Cgroups of this name in every hierarchy. Others come and go meanwhile, at which find(1) fails. */
async function cgroupsNamed(name: string, directory = '/sys/fs/cgroup'): Promise<string[]> {
  const entries = await readdir(directory, { withFileTypes: true }).catch((error: unknown) => {
    // ENODEV: removed between its opening and its reading.
    if (['ENOENT', 'ENODEV'].includes(errnoOf(error) ?? '')) return [];
    throw error;
  });
  const below = entries.filter((entry) => entry.isDirectory()).map((entry) => join(directory, entry.name));
  const found = await Promise.all(below.map(async (path) => await cgroupsNamed(name, path)));
  return [...below.filter((path) => basename(path) === name), ...found.flat()];
}

async function leftoversOf(id: SandboxId, stateDirectory: string): Promise<string[]> {
  const found: string[] = [];
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) if (line.includes(id)) found.push(`mount ${line}`);
  found.push(...(await cgroupsNamed(id)));
  for (const folder of ['sandboxes', 'program']) {
    const names = await readdir(join(stateDirectory, folder)).catch((): string[] => []);
    if (names.includes(id)) found.push(join(stateDirectory, folder, id));
  }
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    // A zombie only waits for the host's init.
    if (processStart(Number(pid)) === undefined) continue;
    const text = await Promise.all(['cgroup', 'cmdline'].map((file) => readFile(`/proc/${pid}/${file}`, 'utf8').catch(() => '')));
    if (text.some((content) => content.includes(id)) && Number(pid) !== process.pid) found.push(`process ${pid}: ${text.join(' ')}`);
  }
  const loops = await run('losetup', ['--list', '--noheadings', '--output', 'BACK-FILE']);
  found.push(...loops.stdout.split('\n').filter((line) => line.includes(id)));
  return found;
}
