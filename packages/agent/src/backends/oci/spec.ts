import { gateVariable, initNodeFlags, secretsDirectory, standbyVariable } from '@drover/init';
import type { CgroupLimits } from '@drover/linux';
import { maxPids } from '@drover/spec';
import {
  devicesBytes,
  initMemoryAllowance,
  initPidsAllowance,
  maxTerminals,
  messageQueueBytes,
  secretsInodes,
  sharedMemoryBytes,
  tmpfsInodes,
  uidRangeSize,
} from '../../limits.ts';
import type { Limits } from '../backend.ts';
import type { ContainerRequest } from './container.ts';
import { seccompProfile } from './seccomp.ts';

/** The loader's file name in the init directory, as the architecture's ABI names it. `architecture` as in process.arch. */
export function loaderName(architecture: string): string {
  return architecture === 'arm64' ? 'ld-linux-aarch64.so.1' : 'ld-linux-x86-64.so.2';
}

/** The gate's descriptor in init (runtime-program.ts): the first after the standard streams. */
const gateDescriptor = 3;

export interface SpecOptions {
  readonly request: ContainerRequest;
  readonly root: string;
  readonly cgroupsPath: string;
  /** First uid and gid on the host; undefined without a user namespace. */
  readonly rangeStart: number | undefined;
  readonly limitsSwap: boolean;
  readonly architecture: string;
  /** Hard limit of open files; in a user namespace no more than this process's own. */
  readonly openFiles: number;
  /** The sources of `request.mounts`, in their order. */
  readonly mountSources: readonly string[];
  /** The container is a standby: its root is read-only, and its init warms up. */
  readonly standby?: boolean;
}

/**
 * The needs of init and ordinary package managers as root of the sandbox: to own, read and change any file of it (CHOWN,
 * DAC_OVERRIDE, FOWNER, FSETID, SETFCAP), to become another user and drop privileges (SETUID, SETGID, SETPCAP), to signal every
 * process (KILL), to bind low ports, and chroot. Not NET_RAW (forged packets), MKNOD, AUDIT_WRITE, SYS_ADMIN or SYS_PTRACE.
 */
const capabilities = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FOWNER',
  'CAP_FSETID',
  'CAP_KILL',
  'CAP_NET_BIND_SERVICE',
  'CAP_SETFCAP',
  'CAP_SETGID',
  'CAP_SETPCAP',
  'CAP_SETUID',
  'CAP_SYS_CHROOT',
] as const;

/** Files of /proc that show the host, or change it. A path that this kernel lacks has no effect. */
const maskedPaths = [
  '/proc/acpi',
  '/proc/asound',
  '/proc/interrupts',
  '/proc/kallsyms',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/modules',
  '/proc/sched_debug',
  '/proc/scsi',
  '/proc/timer_list',
  '/proc/timer_stats',
];
/** /sys/fs/cgroup: on version 1 the runtime program puts the hierarchies on a tmpfs, which it leaves writable and without a bound. */
const readonlyPaths = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger', '/sys/fs/cgroup'];

/** The OCI runtime configuration of a sandbox. Source: OCI runtime-spec 1.0.2, config.md and config-linux.md. */
export function buildSpec(options: SpecOptions): object {
  const { request, rangeStart } = options;
  const mapping = rangeStart === undefined ? undefined : [{ containerID: 0, hostID: rangeStart, size: uidRangeSize }];
  const path = request.network.namespacePath;
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user: { uid: 0, gid: 0 },
      args: [
        `/.drover/${loaderName(options.architecture)}`,
        // The cache is the image's file (docs/decisions/0009).
        '--inhibit-cache',
        '--library-path',
        '/.drover/lib',
        '/.drover/node',
        ...initNodeFlags,
        '/.drover/init.cjs',
      ],
      env: [
        'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
        // Init has few threads, and an arena per thread costs 0.7 MB per sandbox (mallopt(3)).
        'MALLOC_ARENA_MAX=1',
        `${gateVariable}=${gateDescriptor}`,
        ...(options.standby === true ? [`${standbyVariable}=1`] : []),
      ],
      cwd: '/',
      noNewPrivileges: true,
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      rlimits: [
        { type: 'RLIMIT_NOFILE', hard: options.openFiles, soft: Math.min(1024, options.openFiles) },
        { type: 'RLIMIT_CORE', hard: 0, soft: 0 },
        { type: 'RLIMIT_MSGQUEUE', hard: messageQueueBytes, soft: messageQueueBytes },
      ],
      // Init raises it for the workload, which is killed first; init must not be preferred over the host's own services.
      oomScoreAdj: 0,
    },
    root: { path: options.root, readonly: options.standby === true },
    hostname: request.hostname,
    mounts: [...systemMounts(request.limits), ...droverMounts(request), ...boundMounts(options), ...secretsMounts(request)],
    linux: {
      ...(mapping === undefined ? {} : { uidMappings: mapping, gidMappings: mapping }),
      namespaces: [
        { type: 'pid' },
        { type: 'ipc' },
        { type: 'uts' },
        { type: 'mount' },
        { type: 'cgroup' },
        ...(mapping === undefined ? [] : [{ type: 'user' }]),
        path === '' ? { type: 'network' } : { type: 'network', path },
      ],
      cgroupsPath: options.cgroupsPath,
      resources: resourcesOf(request.limits, options.limitsSwap),
      rootfsPropagation: 'rprivate',
      seccomp: seccompProfile(options.architecture),
      maskedPaths,
      readonlyPaths,
    },
  };
}

/** Every mount that a sandbox can write to is bounded, in bytes and in files (table in e2e/field/disks.test.ts). */
export const sharedMemoryPath = '/dev/shm';

/** The size of /dev/shm, which is memory of the sandbox and therefore no larger than its limit. Bytes. */
export function sharedMemoryOf({ shmBytes, memoryBytes }: Limits): number {
  return shmBytes || Math.min(sharedMemoryBytes, memoryBytes || Number.POSITIVE_INFINITY);
}

function systemMounts(limits: Limits): object[] {
  return [
    { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev'] },
    {
      destination: '/dev',
      type: 'tmpfs',
      source: 'tmpfs',
      options: ['nosuid', 'strictatime', 'mode=755', `size=${devicesBytes}`, `nr_inodes=${tmpfsInodes}`],
    },
    {
      destination: '/dev/pts',
      type: 'devpts',
      source: 'devpts',
      options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5', `max=${maxTerminals}`],
    },
    {
      destination: sharedMemoryPath,
      type: 'tmpfs',
      source: 'drover',
      // Not noexec: programs that compile at run time map code from here, and every other directory lets them.
      options: ['nosuid', 'nodev', 'mode=1777', `size=${sharedMemoryOf(limits)}`, `nr_inodes=${tmpfsInodes}`],
    },
    { destination: '/dev/mqueue', type: 'mqueue', source: 'mqueue', options: ['nosuid', 'noexec', 'nodev'] },
    // Not the host's /sys (which cannot be mounted either, since the host owns the network namespace): an empty tmpfs, with the files by which
    // programs count CPUs.
    { destination: '/sys', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'noexec', 'nodev', 'mode=755', 'size=64k', 'nr_inodes=64'] },
    {
      destination: '/sys/devices/system/cpu',
      type: 'bind',
      source: '/sys/devices/system/cpu',
      options: ['bind', 'ro', 'nosuid', 'noexec', 'nodev'],
    },
    // its own cgroup and none above it, from which a JVM, Node.js and others read their limits.
    { destination: '/sys/fs/cgroup', type: 'cgroup', source: 'cgroup', options: ['ro', 'nosuid', 'noexec', 'nodev'] },
  ];
}

/** I-38: the needs of init, independent of the image. */
function droverMounts(request: ContainerRequest): object[] {
  return [
    { destination: '/.drover', type: 'bind', source: request.initDirectory, options: ['bind', 'ro', 'nosuid', 'nodev'] },
    { destination: '/.drover/run', type: 'bind', source: request.runDirectory, options: ['bind', 'rw', 'nosuid', 'nodev', 'noexec'] },
  ];
}

function boundMounts(options: SpecOptions): object[] {
  return options.request.mounts.map((mount, index) => ({
    destination: mount.target,
    type: 'bind',
    source: options.mountSources[index] ?? mount.source,
    options: ['rbind', mount.readOnly ? 'ro' : 'rw', 'nosuid', 'nodev'],
  }));
}

/** a tmpfs, which ends with the sandbox's mount namespace. */
function secretsMounts({ secretsBytes }: ContainerRequest): object[] {
  if (secretsBytes === undefined) return [];
  const options = ['nosuid', 'noexec', 'nodev', 'mode=755', `size=${secretsBytes}`, `nr_inodes=${secretsInodes}`];
  return [{ destination: secretsDirectory, type: 'tmpfs', source: 'drover', options }];
}

/** the limits of the workload, raised by init's own share. */
export function resourcesOf(limits: Limits, limitsSwap: boolean): CgroupLimits {
  const memory = limits.memoryBytes === 0 ? undefined : limits.memoryBytes + initMemoryAllowance;
  return {
    ...(limits.cpuMillis === 0 ? {} : { cpu: { period: 100_000, quota: Math.max(1_000, limits.cpuMillis * 100) } }),
    // The swap limit counts memory too: equal limits mean no swap.
    ...(memory === undefined ? {} : { memory: { limit: memory, ...(limitsSwap ? { swap: memory } : {}) } }),
    ...(limits.pids === 0 ? {} : { pids: { limit: Math.min(limits.pids + initPidsAllowance, maxPids) } }),
  };
}
