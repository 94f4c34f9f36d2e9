import { readdirSync, readFileSync } from 'node:fs';

/** Ticks per second of the times in /proc (proc(5)); Linux reports 100 on every architecture that Drover supports. */
const ticksPerSecond = 100;

/** Parts of a create whose CPU time is measured. */
export const parts = [
  'client',
  'control plane',
  'agent',
  'programs of the agent',
  'gateway',
  'init',
  'children of init',
  'kernel and the rest',
  'machine',
] as const;
export type Part = (typeof parts)[number];

/** The processes of one Drover. */
export interface Processes {
  readonly client: number;
  readonly controlPlane: number;
  readonly agent: number;
  readonly gateway: number;
  /** The first processes of sandboxes and standbys. */
  readonly inits: () => readonly number[];
}

interface Times {
  readonly own: number;
  /** Of children that have ended and were waited for. */
  readonly children: number;
}

/** CPU times at one moment, ms. */
export interface CpuTimes {
  readonly byPid: ReadonlyMap<number, Times>;
  /** The gateway's supervisor and its daemons. */
  readonly gateway: readonly number[];
  readonly inits: readonly number[];
  readonly machine: number;
}

export function cpuTimes(processes: Processes): CpuTimes {
  const inits = processes.inits();
  const gateway = [processes.gateway, ...childrenOf(processes.gateway)];
  const pids = [processes.client, processes.controlPlane, processes.agent, ...gateway, ...inits];
  return { byPid: new Map(pids.map((pid) => [pid, timesOf(pid)])), gateway, inits, machine: machineTime() };
}

/** CPU time between two moments by part, ms. A process that did not exist at the first counts from its start. */
export function cpuBetween(processes: Processes, before: CpuTimes, after: CpuTimes): Readonly<Record<Part, number>> {
  const own = (pid: number): number => (after.byPid.get(pid)?.own ?? 0) - (before.byPid.get(pid)?.own ?? 0);
  const children = (pid: number): number => (after.byPid.get(pid)?.children ?? 0) - (before.byPid.get(pid)?.children ?? 0);
  const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
  const named = {
    client: own(processes.client),
    'control plane': own(processes.controlPlane),
    agent: own(processes.agent),
    'programs of the agent': children(processes.agent),
    gateway: sum(after.gateway.map(own)) + children(processes.gateway),
    init: sum(after.inits.map(own)),
    'children of init': sum(after.inits.map(children)),
  };
  const machine = after.machine - before.machine;
  return { ...named, 'kernel and the rest': Math.max(0, machine - sum(Object.values(named))), machine };
}

function timesOf(pid: number): Times {
  const fields = afterName(`/proc/${pid}/stat`);
  const ms = (field: number): number => (Number(fields[field - 3] ?? 0) * 1000) / ticksPerSecond;
  // A live process's own time in nanoseconds, by thread: ticks of 10 ms are too coarse for an init.
  return { own: threadsTime(pid) ?? ms(14) + ms(15), children: ms(16) + ms(17) };
}

function childrenOf(pid: number): readonly number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
}

function threadsTime(pid: number): number | undefined {
  try {
    return readdirSync(`/proc/${pid}/task`)
      .map((thread) => Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]) / 1e6)
      .reduce((total, value) => total + value, 0);
  } catch {
    // The process or a thread has ended, or the kernel has no schedstat.
    return undefined;
  }
}

/** The fields of a stat file from the third on: the second, a name in parentheses, may contain spaces. */
function afterName(path: string): readonly string[] {
  try {
    const text = readFileSync(path, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ');
  } catch {
    return [];
  }
}

/** Time that the CPUs of the machine were not idle, ms. */
function machineTime(): number {
  const [, user, nice, system, , , irq, softirq] = (readFileSync('/proc/stat', 'utf8').split('\n')[0] ?? '').split(/\s+/).map(Number);
  return (((user ?? 0) + (nice ?? 0) + (system ?? 0) + (irq ?? 0) + (softirq ?? 0)) * 1000) / ticksPerSecond;
}
