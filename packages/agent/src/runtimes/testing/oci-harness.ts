import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, rmdir, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { errnoOf, newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { initPort } from '@drover/init';
import { processStart } from '@drover/linux';
import { limitsOf, type Behaviour, type Harness } from '../conformance.ts';
import { OciRuntime, prepareInitDirectory } from '../oci/index.ts';
import type { CreateRequest, Limits } from '../runtime.ts';
import { RuntimeOfStandbys } from './standbys.ts';

const run = promisify(execFile);
/** Of this process alone, so that test files side by side do not sweep each other's. */
const cgroupParent = `/drover-test-${process.pid}`;
const here = fileURLToPath(new URL('.', import.meta.url));

export interface OciHarness extends Harness {
  readonly runtime: OciRuntime;
  readonly directory: string;
  readonly stateDirectory: string;
  readonly cgroupParent: string;
  /** A root with busybox in it. */
  readonly busybox: string;
  requestOf(argv: readonly string[], overrides?: Partial<CreateRequest>): Promise<CreateRequest>;
  /** Makes a standby under the request's id in another process, which is killed. */
  standByAndCrash(request: CreateRequest): Promise<void>;
}

/**
 * A real host for the OCI runtime: busybox as root, a network namespace behind a veth pair, the small init of this directory.
 * With `standby`, every sandbox is made of one.
 */
export async function openOciHarness(program: string, ahead: 'standby' | 'nothing' = 'nothing'): Promise<OciHarness> {
  const directory = await mkdtemp(join(tmpdir(), 'drover-oci-'));
  await chmod(directory, 0o711);
  const network = await openNetwork();
  const stateDirectory = join(directory, 'state');
  await mkdir(stateDirectory);
  const busybox = await unpackBusybox(join(directory, 'busybox'));
  const initDirectory = await prepareInitDirectory(directory, { nodePath: process.execPath, bundlePath: join(here, 'init.cjs') });
  const options = { stateDirectory, cgroupParent, program, logger: silentLogger };
  const runtimes: OciRuntime[] = [];
  const open = (): OciRuntime => {
    const runtime = ahead === 'nothing' ? new OciRuntime(options) : new RuntimeOfStandbys(options);
    runtimes.push(runtime);
    return runtime;
  };
  const runtime = open();

  const configure = async (runDirectory: string, address: string, argv: readonly string[]): Promise<void> => {
    await rm(join(runDirectory, 'config.json'), { force: true });
    const config = { listen: { host: address, port: initPort }, main: { argv } };
    await writeFile(join(runDirectory, 'config.json'), JSON.stringify(config), { mode: 0o400 });
  };
  const requestOf = async (argv: readonly string[], overrides: Partial<CreateRequest> = {}): Promise<CreateRequest> => {
    const id = newSandboxId();
    const runDirectory = join(directory, `run-${id}`);
    await mkdir(runDirectory, { mode: 0o700 });
    const attachment = network.next();
    await configure(runDirectory, attachment.address, argv);
    return {
      id,
      hostname: 'box',
      layers: [busybox],
      network: attachment,
      limits: limitsOf(),
      mounts: [],
      initDirectory,
      runDirectory,
      ...overrides,
    };
  };

  const crash = async (act: 'create' | 'create of standby' | 'stand by', request: CreateRequest, midwayMs?: number): Promise<void> => {
    const { logger: _, ...plain } = options;
    const args = ['--conditions=development', join(here, 'create-child.ts'), JSON.stringify(plain), JSON.stringify(request), act];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const closed = once(child, 'close');
    let said = '';
    child.stdout.on('data', (data: Buffer) => (said += data.toString()));
    const word = midwayMs === undefined ? 'done' : 'begin';
    while (!said.includes(word))
      await Promise.race([once(child.stdout, 'data'), closed.then(() => Promise.reject(new Error('the child ended')))]);
    if (midwayMs !== undefined) await new Promise((resolve) => setTimeout(resolve, midwayMs));
    child.kill('SIGKILL');
    await closed;
  };

  return {
    runtime,
    directory,
    stateDirectory,
    cgroupParent,
    busybox,
    requestOf,
    restarted: open,
    request: (behaviour, limits: Partial<Limits> = {}) => requestOf(argvOf(behaviour), { limits: limitsOf(limits) }),
    again: async (request, behaviour) => {
      await configure(request.runDirectory, request.network.address, argvOf(behaviour));
      return request;
    },
    createAndCrash: async (request, midwayMs) => await crash(ahead === 'nothing' ? 'create' : 'create of standby', request, midwayMs),
    standByAndCrash: async (request) => await crash('stand by', request),
    leftovers: (id) => leftoversOf(id, stateDirectory),
    close: async () => {
      try {
        await runtime.sweep(new Set());
      } finally {
        for (const opened of runtimes) await opened.close();
        await network.close();
        for (const path of await cgroupsNamed(cgroupParent.slice(1))) await rmdir(path);
        await rm(directory, { recursive: true, force: true });
      }
    },
  };
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
      // It looks for the last line of what has none.
      return ['/bin/tail', '/dev/zero'];
    case 'burn-cpu':
      return shell('while :; do :; done');
    case 'fork':
      return shell(`i=0; while [ $i -lt ${behaviour.processes} ]; do sleep 60 & i=$((i+1)); done; exit 0`);
    default:
      return shell('[ -e /made ] && exit 0; : > /made; exit 1');
  }
}

/** busybox-static, unpacked by hand: a root of one program and its names. */
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

const addresses = 60;

/** One network namespace for all sandboxes of a test file, with many addresses: the runtime only has to join it. */
async function openNetwork() {
  const name = `drt${process.pid}`;
  const subnet = process.pid % 250;
  const far = Array.from({ length: addresses }, (_, i) => `10.251.${subnet}.${i + 2}`);
  const close = async (): Promise<void> => {
    // The pair goes with the namespace that has its other end.
    await run('ip', ['netns', 'del', name]);
  };
  await run('ip', ['netns', 'add', name]);
  try {
    await batch(
      [],
      [`link add ${name} type veth peer name eth0 netns ${name}`, `addr add 10.251.${subnet}.1/24 dev ${name}`, `link set ${name} up`],
    );
    await batch(['-n', name], [...far.map((address) => `addr add ${address}/24 dev eth0`), 'link set eth0 up', 'link set lo up']);
  } catch (error) {
    await close();
    throw error;
  }
  let used = 0;
  return {
    next: () => {
      const address = far[used++];
      if (address === undefined) throw new Error(`the test network has ${addresses} addresses`);
      return {
        namespacePath: `/run/netns/${name}`,
        address,
        gatewayAddress: `10.251.${subnet}.1`,
        proxyPort: 3128,
        controlPort: 9181,
        interface: name,
      };
    },
    close,
  };
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
    // A zombie is only waiting for the host's init to notice.
    if (processStart(Number(pid)) === undefined) continue;
    const text = await Promise.all(['cgroup', 'cmdline'].map((file) => readFile(`/proc/${pid}/${file}`, 'utf8').catch(() => '')));
    if (text.some((content) => content.includes(id)) && Number(pid) !== process.pid) found.push(`process ${pid}: ${text.join(' ')}`);
  }
  const loops = await run('losetup', ['--list', '--noheadings', '--output', 'BACK-FILE']);
  found.push(...loops.stdout.split('\n').filter((line) => line.includes(id)));
  return found;
}
