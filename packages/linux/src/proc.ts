import { readdirSync, readFileSync, writeFileSync } from 'node:fs';

/** The reader of /proc (proc(5)). A process that has ended while its files are read counts as absent. */

function readText(path: string): string | undefined {
  try {
    return readFileSync(`/proc/${path}`, 'utf8');
  } catch {
    // ENOENT or ESRCH: the process has ended; in a sandbox, /proc may be absent.
    return undefined;
  }
}

/** Fields of /proc/PID/stat from the third on. The second, the program's name in parentheses, may contain anything. */
function statFields(pid: number): readonly string[] {
  const stat = readText(`${pid}/stat`) ?? '';
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
}

/** When a process started, in clock ticks since boot: together with the pid, its identity. Undefined: it has ended, or is a zombie. */
export function processStart(pid: number): string | undefined {
  const [state = '', ...rest] = statFields(pid);
  return state === '' || state === 'Z' || state === 'X' ? undefined : rest[18];
}

/** Whether the process that started at `start` still runs. */
export function isSameProcess(pid: number | undefined, start: string | undefined): pid is number {
  return pid !== undefined && start !== undefined && processStart(pid) === start;
}

export function isZombie(pid: number): boolean {
  return statFields(pid)[0] === 'Z';
}

/** The children of this process's main thread. */
export function ownChildren(): readonly number[] {
  return numbersIn(readText(`self/task/${process.pid}/children`));
}

/** Running processes that were started with exactly this argument. Reads all of /proc. */
export function processesWithArgument(argument: string): readonly number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => argumentsOf(pid).includes(argument) && processStart(pid) !== undefined);
}

/** The arguments of a process, its program first. In /proc they begin with the loader that started it, unlike process.argv. */
export function argumentsOf(pid: number | 'self'): readonly string[] {
  return (readText(`${pid}/cmdline`) ?? '').split('\0').slice(0, -1);
}

/** The bytes of this process's arguments or environment, separated by zeros. Node decodes them as UTF-8, with loss. Undefined without /proc. */
export function ownBytes(of: 'cmdline' | 'environ'): Buffer | undefined {
  try {
    return readFileSync(`/proc/self/${of}`);
  } catch {
    return undefined;
  }
}

export interface MountEntry {
  readonly target: string;
  readonly type: string;
  /** Options of the file system, such as the controllers of a cgroup hierarchy. */
  readonly options: readonly string[];
}

/** This mount namespace's mounts, in the order in which they were made. */
export function mountTable(): readonly MountEntry[] {
  return parseMountTable(readFileSync('/proc/self/mountinfo', 'utf8'));
}

/** Parses the format of proc_pid_mountinfo(5). */
export function parseMountTable(text: string): readonly MountEntry[] {
  return text.split('\n').flatMap((line) => {
    const [before = '', after = ''] = line.split(' - ');
    const target = before.split(' ')[4];
    const [type = '', , options = ''] = after.split(' ');
    const unescaped = target?.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
    return unescaped === undefined ? [] : [{ target: unescaped, type, options: options.split(',') }];
  });
}

/** Whether a process is in the cgroup of this name, in any hierarchy. */
export function isInCgroup(pid: number, name: string): boolean {
  return (readText(`${pid}/cgroup`) ?? '').split('\n').some((line) => line.split('/').includes(name));
}

/** @throws the system's error, for instance while the process has not become its program yet */
export function setOomScoreAdjustment(pid: number, value: number): void {
  writeFileSync(`/proc/${pid}/oom_score_adj`, String(value));
}

/** This process's hard limit of open files. */
export function openFilesLimit(): number {
  const hard = /^Max open files\s+\S+\s+(\S+)/m.exec(readText('self/limits') ?? '')?.[1];
  return hard === undefined || hard === 'unlimited' ? Number.MAX_SAFE_INTEGER : Number(hard);
}

export interface IdRange {
  readonly first: number;
  readonly last: number;
}

/** The ranges of ids that this process's user namespace has (user_namespaces(7)); none without /proc. */
export function mappedIds(kind: 'uid' | 'gid'): readonly IdRange[] {
  return parseIdMap(readText(`self/${kind}_map`) ?? '');
}

export function parseIdMap(text: string): readonly IdRange[] {
  return text.split('\n').flatMap((line) => {
    const [first = Number.NaN, , count = Number.NaN] = line.trim().split(/\s+/).map(Number);
    return Number.isNaN(first + count) ? [] : [{ first, last: first + count - 1 }];
  });
}

/** The kernel's name for this boot of the machine (random(4)). */
export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

/** Memory that programs can allocate without swapping. Bytes. */
export function availableMemory(): number {
  return Number(/^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0) * 1024;
}

/** Whether the kernel has a file system of this type loaded. */
export function hasFileSystem(type: string): boolean {
  return (readText('filesystems') ?? '').split('\n').some((line) => line.split('\t')[1] === type);
}

/** How many user namespaces the kernel allows; undefined when it has no such limit, or no user namespaces. */
export function maxUserNamespaces(): number | undefined {
  const text = readText('sys/user/max_user_namespaces');
  return text === undefined ? undefined : Number(text);
}

/** Whether the running kernel is at least this version. */
export function isKernelSince(major: number, minor: number): boolean {
  const [ofMajor = 0, ofMinor = 0] = (readText('sys/kernel/osrelease') ?? '').split('.').map(Number);
  return ofMajor > major || (ofMajor === major && ofMinor >= minor);
}

/** Names of this network namespace's interfaces. /sys would show those of the namespace that it was mounted in. */
export function interfaceNames(): readonly string[] {
  return [...(readText('net/dev') ?? '').matchAll(/^\s*([^:\s]+):/gm)].map(([, name = '']) => name);
}

/** Turns IPv6 off on an interface; does nothing where the kernel has none or /proc is read-only. */
export function disableIPv6(networkInterface: string): void {
  try {
    writeFileSync(`/proc/sys/net/ipv6/conf/${networkInterface}/disable_ipv6`, '1');
  } catch {
    // There is nothing to turn off, or no way to; the firewall's rules drop IPv6 in any case.
  }
}

/** The pid in a file that a program wrote; undefined before it has. */
export function readPidFile(path: string): number | undefined {
  try {
    const pid = Number(readFileSync(path, 'utf8'));
    return Number.isInteger(pid) && pid > 1 ? pid : undefined;
  } catch {
    return undefined;
  }
}

function numbersIn(text: string | undefined): readonly number[] {
  return (text ?? '')
    .split(' ')
    .filter((word) => /^\d+$/.test(word))
    .map(Number);
}
