import { existsSync } from 'node:fs';
import { appendFile, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { execa } from 'execa';
import { eventually, repository, type Finished } from './drover.ts';
import { tool } from './images.ts';
import { HostNetwork, removeTraces } from './second-host.ts';

const clonePath = '/srv/drover.git';
/** The repository on a bare machine, which holds the commits of this checkout. */
export const cloneSource = `file://${clonePath}`;

/**
 * The root file system of a fresh Debian machine with the prerequisites of the README: its own Node.js and npm, and git. It lies in memory.
 * Its packages come from this machine's mirrors. It inherits the settings that a user would carry over: apt's and npm's configuration, the
 * resolver, and the certificates and proxies that the environment names.
 */
export class BareRoot implements AsyncDisposable {
  readonly #directory: string;
  readonly #copies: string[] = [];

  private constructor(directory: string) {
    this.#directory = directory;
  }

  /** @param packages the Debian names of additional packages */
  static async create(packages: readonly string[]): Promise<BareRoot> {
    const root = new BareRoot(await mkdtemp(join(tmpdir(), 'drover-bare-')));
    try {
      await tool('mount', '-t', 'tmpfs', '-o', 'size=6g,mode=755', 'tmpfs', root.#directory);
      await root.#install(['ca-certificates', 'git', 'nodejs', 'npm', ...packages]);
      await root.#carryOver();
      return root;
    } catch (error) {
      await root[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** A directory outside the root for files of the test. */
  get scratch(): string {
    return this.#directory;
  }

  get path(): string {
    return join(this.#directory, 'root');
  }

  async #install(packages: readonly string[]): Promise<void> {
    const parts = (await readdir('/etc/apt/sources.list.d')).filter((name) => /\.(?:list|sources)$/.test(name));
    const sources = ['/etc/apt/sources.list', ...parts.map((name) => join('/etc/apt/sources.list.d', name))].filter(existsSync);
    const settings = join(this.#directory, 'apt.conf');
    await writeFile(settings, await tool('apt-config', 'dump', 'Acquire'));
    const options = ['--quiet', '--variant=minbase', `--include=${packages.join()}`, `--aptopt=${settings}`];
    await tool('mmdebstrap', ...options, 'bookworm', this.path, ...sources);
  }

  async #carryOver(): Promise<void> {
    const systemd = '/run/systemd/resolve/resolv.conf';
    await copyFile(existsSync(systemd) ? systemd : '/etc/resolv.conf', join(this.path, 'etc/resolv.conf'));
    const npm = join(this.path, 'root/.npmrc');
    for (const kind of ['globalconfig', 'userconfig']) {
      const file = (await tool('npm', 'config', 'get', kind)).trim();
      // Settings that name a directory of this machine's Node.js do not apply to the other machine.
      if (existsSync(file)) await appendFile(npm, (await readFile(file, 'utf8')).replaceAll(/^(?:nodedir|prefix) *=.*$/gm, ''));
    }
    const named = [(await tool('npm', 'config', 'get', 'cafile')).trim(), ...Object.values(carriedEnvironment())];
    for (const file of new Set(named.filter((value) => value.startsWith('/') && existsSync(value)))) {
      await mkdir(dirname(join(this.path, file)), { recursive: true });
      await cp(file, join(this.path, file), { recursive: true, dereference: true });
    }
    await tool('git', 'clone', '--quiet', '--bare', repository, join(this.path, clonePath));
  }

  /** Returns a root that starts with the present contents of this one. This root must not change while a copy exists. */
  async copy(name: string): Promise<string> {
    const at = (part: string): string => join(this.#directory, name, part);
    for (const part of ['root', 'upper', 'work']) await mkdir(at(part), { recursive: true });
    const options = `lowerdir=${this.path},upperdir=${at('upper')},workdir=${at('work')}`;
    await tool('mount', '-t', 'overlay', 'overlay', '-o', options, at('root'));
    this.#copies.push(at('root'));
    return at('root');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const copy of this.#copies) await execa('umount', ['--lazy', copy], { reject: false });
    await execa('umount', ['--lazy', this.#directory], { reject: false });
    await rm(this.#directory, { recursive: true, force: true });
  }
}

/** Variables that name the proxies and certificates of this machine's programs. */
function carriedEnvironment(): Record<string, string> {
  const pattern = /^(?:https?_proxy|no_proxy|all_proxy|NODE_EXTRA_CA_CERTS|GIT_SSL_CAINFO|SSL_CERT_FILE|CURL_CA_BUNDLE)$/i;
  const entries = Object.entries(process.env).filter(([name]) => pattern.test(name));
  return Object.fromEntries(entries) as Record<string, string>;
}

/**
 * A machine with its own root, mounts, processes and network. It shares this machine's kernel and cgroups, and reaches the outside through
 * this machine.
 */
export class BareMachine implements AsyncDisposable {
  readonly network: HostNetwork;
  readonly #first: ReturnType<typeof boot>;
  readonly #root: string;
  #pid = 0;

  private constructor(network: HostNetwork, root: string) {
    this.network = network;
    this.#root = root;
    this.#first = boot(network, root);
  }

  /** @param prefix the first three bytes of the network between the machines, such as `10.230.1` */
  static async start(root: string, prefix: string): Promise<BareMachine> {
    const network = await HostNetwork.create(prefix, { firewall: false });
    const machine = new BareMachine(network, root);
    try {
      await tool('ip', '-n', network.namespace, 'route', 'add', 'default', 'via', network.controlPlaneAddress);
      await writeFile('/proc/sys/net/ipv4/ip_forward', '1');
      const chain = `chain postrouting { type nat hook postrouting priority srcnat; ip saddr ${network.hostAddress} masquerade; };`;
      await execa('nft', ['-f', '-'], { input: `table ip ${network.namespace} { ${chain} }` });
      machine.#pid = await eventually('the machine has started', async () => {
        const parent = machine.#first.pid ?? 0;
        const child = Number((await readFile(`/proc/${parent}/task/${parent}/children`, 'utf8')).trim());
        const name = await readFile(`/proc/${child}/comm`, 'utf8').catch(() => '');
        return name.trim() === 'bash' ? child : undefined;
      });
      return machine;
    } catch (error) {
      await machine[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Returns a program and its arguments that run a shell command as root on that machine. */
  command(line: string, directory = '/root', env: Readonly<Record<string, string>> = {}): readonly [string, ...string[]] {
    const path = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
    const variables = { HOME: '/root', PATH: path, TERM: 'xterm', NO_COLOR: '1', ...carriedEnvironment(), ...env };
    const words = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
    const enter = ['--target', String(this.#pid), '--mount', '--pid', '--ipc', '--uts', '--net'];
    return ['nsenter', ...enter, 'env', '-i', ...words, 'bash', '-c', `cd ${directory} && ${line}`];
  }

  /** Runs a shell command to its end. Never rejects for its exit code. */
  async run(
    line: string,
    options: { readonly directory?: string; readonly input?: string; readonly timeoutMs?: number } = {},
  ): Promise<Finished> {
    const [file, ...args] = this.command(line, options.directory);
    const result = await execa(file, args, {
      reject: false,
      timeout: options.timeoutMs ?? 60_000,
      input: options.input ?? '',
      extendEnv: false,
    });
    if (result.timedOut) throw new Error(`"${line}" took too long: ${result.stdout}${result.stderr}`);
    return { code: result.exitCode ?? -1, stdout: result.stdout, stderr: result.stderr };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // SIGKILL of the first process ends every process of its PID namespace.
    this.#first.kill('SIGKILL');
    await this.#first;
    await removeTraces(join(this.#root, 'var/lib/drover/host'));
    await execa('nft', ['delete', 'table', 'ip', this.network.namespace], { reject: false });
    await this.network[Symbol.asyncDispose]();
  }
}

function boot(network: HostNetwork, root: string) {
  const own = ['--mount', '--pid', '--ipc', '--uts', '--fork', '--kill-child'];
  const [file, ...args] = network.command('unshare', ...own, 'sh', '-c', firstProcess, 'sh', root);
  return execa(file, args, { reject: false, stdin: 'ignore' });
}

/**
 * Mounts the file systems of a machine and becomes its first process, which reaps orphans. The root is the mount namespace's own, because
 * the kernel refuses user namespaces below chroot(2).
 */
const firstProcess = `set -e
root=$1
mount --make-rprivate /
mount --rbind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/run"
cd "$root"
pivot_root . mnt
exec bash -c 'umount --lazy /mnt; trap : TERM; while :; do sleep infinity & wait; done'
`;
