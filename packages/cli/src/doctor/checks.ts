import { execFile } from 'node:child_process';
import { access, statfs } from 'node:fs/promises';
import { createServer } from 'node:net';
import { arch, platform, release } from 'node:os';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { directoryProblem, DroverError, errnoOf, formatBytes, reasonOf } from '@drover/foundation';
import { Cgroups, hasFileSystem, maxUserNamespaces, mountTable } from '@drover/linux';
import { doctorCheckMs, doctorFreeBytes } from '../limits.ts';

/** The result of one check. */
export interface Finding {
  readonly name: string;
  readonly level: 'ok' | 'warning' | 'problem';
  readonly message: string;
  /** What to do; empty if the check passed. */
  readonly hint: string;
}

export interface DoctorSettings {
  readonly data: string;
  readonly host: string;
  readonly port: number;
  /** The address of a responding control plane, host:port. If it is the address to listen on, the port is rightly in use. */
  readonly running?: string;
}

export type Check = (settings: DoctorSettings) => Promise<Finding> | Finding;

const ok = (name: string, message: string): Finding => ({ name, level: 'ok', message, hint: '' });
const warning = (name: string, message: string, hint: string): Finding => ({ name, level: 'warning', message, hint });
const problem = (name: string, message: string, hint: string): Finding => ({ name, level: 'problem', message, hint });

const run = promisify(execFile);
/** Includes the administrator's directories, which may be missing from PATH. */
const path = `${process.env['PATH'] ?? ''}:/usr/local/sbin:/usr/sbin:/sbin`;

/** The first line that a program prints; undefined if the program does not exist. */
async function firstLine(program: string, ...args: string[]): Promise<string | undefined> {
  try {
    const { stdout } = await run(program, args, { timeout: doctorCheckMs, env: { ...process.env, PATH: path } });
    return stdout.split('\n')[0]?.trim() ?? '';
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** Checks of the usual causes of failure. Each depends on the ones before it. */
export const checks: Readonly<Record<string, Check>> = {
  'operating system': () => {
    const text = `${platform()} ${release()} (${arch()})`;
    if (platform() !== 'linux') return problem('operating system', text, 'a host requires Linux; elsewhere, use drover up --no-agent');
    const [major = 0, minor = 0] = release().split('.').map(Number);
    if (major < 5 || (major === 5 && minor < 4)) return warning('operating system', text, 'Drover is tested on Linux 5.4 and newer');
    return ok('operating system', text);
  },
  'Node.js': () => {
    const major = Number(process.versions.node.split('.')[0]);
    return major >= 26
      ? ok('Node.js', process.version)
      : problem('Node.js', `this is ${process.version}, but Drover requires 26`, 'start it with ./drover, which uses its own Node.js');
  },
  privileges: () =>
    process.getuid?.() === 0 ? ok('privileges', 'root') : problem('privileges', 'not root', 'sandboxes require root: sudo ./drover up'),
  'container runtime': async () => {
    for (const name of ['runc', 'crun']) {
      const line = await firstLine(name, '--version');
      if (line !== undefined) return ok('container runtime', line);
    }
    return problem('container runtime', 'neither runc nor crun is installed', 'apt-get install runc');
  },
  nftables: async () => {
    const line = await firstLine('nft', '--version');
    if (line === undefined) return problem('nftables', 'nft is not installed', 'apt-get install nftables');
    if (process.getuid?.() !== 0) return ok('nftables', line);
    try {
      await run('nft', ['list', 'tables'], { timeout: doctorCheckMs, env: { ...process.env, PATH: path } });
      return ok('nftables', line);
    } catch (error) {
      return problem(
        'nftables',
        `the kernel refuses it (${DroverError.from(error).message.split('\n')[1] ?? 'nft list tables failed'})`,
        'modprobe nf_tables; in a container, it needs CAP_NET_ADMIN',
      );
    }
  },
  'ip command': async () => {
    const line = await firstLine('ip', '-V');
    return line === undefined ? problem('ip command', 'ip is not installed', 'apt-get install iproute2') : ok('ip command', line);
  },
  overlayfs: () => {
    if (hasFileSystem('overlay')) return ok('overlayfs', 'supported by the kernel');
    return warning('overlayfs', 'it is not loaded', 'modprobe overlay');
  },
  'user namespaces': () => {
    const max = maxUserNamespaces();
    if (max !== undefined && max > 0) return ok('user namespaces', `up to ${max}`);
    return warning(
      'user namespaces',
      'the kernel does not allow them',
      'sysctl user.max_user_namespaces=15000; without them, root in a sandbox is root on the host, confined only by seccomp and capabilities',
    );
  },
  cgroups: () => {
    const cgroups = new Cgroups('/drover');
    if (cgroups.kind !== 'v2') return ok('cgroups', cgroups.kind === 'v1' ? 'version 1' : 'versions 1 and 2 (hybrid)');
    if (!mountTable().some(({ type }) => type === 'cgroup2'))
      return problem('cgroups', 'no cgroup file system is mounted', 'mount -t cgroup2 none /sys/fs/cgroup');
    const lacking = cgroups.missing();
    if (lacking.length > 0)
      return warning(
        'cgroups',
        `version 2 without ${lacking.join(', ')}`,
        'their limits are not enforced; on a Raspberry Pi, boot with cgroup_enable=memory',
      );
    return ok('cgroups', 'version 2');
  },
  disk: async ({ data }) => {
    const directory = await nearest(data);
    const unusable = await directoryProblem(directory);
    if (unusable !== undefined) return problem('disk', `${directory} cannot be used: ${unusable.reason}`, 'choose another with --data');
    const { bavail, bsize } = await statfs(directory);
    const free = bavail * bsize;
    const text = `${formatBytes(free)} free at ${data}`;
    return free < doctorFreeBytes
      ? warning('disk', text, 'images need disk space: free some, or choose another disk with --data')
      : ok('disk', text);
  },
  port: async ({ host, port, running }) => {
    if (running === `${host}:${port}`) return ok('port', `drover responds on ${host}:${port}`);
    const code = await tryListen(host, port);
    if (code === undefined) return ok('port', `${host}:${port} is free`);
    if (code === 'EADDRINUSE')
      return problem('port', `${host}:${port} is in use by another program`, `find it with ss -ltnp, or choose another with --listen`);
    return problem('port', `cannot listen on ${host}:${port}: ${code}`, 'choose another with --listen');
  },
  clock: () => {
    // A wrong clock makes certificates invalid. A time before this program was written is certainly wrong.
    const written = Date.UTC(2026, 10, 1);
    return Date.now() < written
      ? problem('clock', `it shows ${new Date().toISOString()}`, 'set the clock, for example with timedatectl set-ntp true')
      : ok('clock', new Date().toISOString());
  },
};

async function nearest(directory: string): Promise<string> {
  for (let at = directory; ; at = dirname(at)) {
    try {
      await access(at);
      return at;
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT' || at === dirname(at)) return at;
    }
  }
}

/** Tries to listen. @returns undefined on success, `EADDRINUSE`, or the reason in words */
export function tryListen(host: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', (error) => resolve(errnoOf(error) === 'EADDRINUSE' ? 'EADDRINUSE' : reasonOf(error)));
    server.listen(port, host, () => server.close(() => resolve(undefined)));
  });
}

/** Runs checks. A check that throws or hangs becomes a warning. */
export async function runChecks(settings: DoctorSettings, names: readonly string[] = Object.keys(checks)): Promise<Finding[]> {
  return Promise.all(
    names.map(async (name) => {
      const timeout = Promise.withResolvers<Finding>();
      const timer = setTimeout(
        () => timeout.resolve(warning(name, 'the check did not finish in time', 'check it by hand')),
        doctorCheckMs * 2,
      );
      try {
        return await Promise.race([(async () => (checks[name] as Check)(settings))(), timeout.promise]);
      } catch (thrown) {
        return warning(name, `the check failed (${DroverError.from(thrown).message})`, 'check it by hand');
      } finally {
        clearTimeout(timer);
      }
    }),
  );
}
