/**
 * Runs inside the virtual machine: mounts a cgroup layout, runs real sandboxes in it with each OCI runtime, and prints one line of JSON for
 * each: `drover-result {…}`.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { createFromStandby, openOciHarness } from '@drover/agent/backends/testing';

export interface GuestResult {
  readonly layout: 'v2' | 'v1';
  readonly program: string;
  /** Whether a standby became the sandbox. Then the agent sets its limits, and not the runtime. */
  readonly madeOf: 'nothing' | 'standby';
  readonly findings: readonly { readonly level: string; readonly subject: string; readonly message: string }[];
  readonly outOfMemory?: { readonly phase: string; readonly outOfMemory: boolean; readonly exitCode: number | undefined };
  /** A shell that wants 60 processes and may have 20, with enough memory. It must fail itself, not run out of memory. */
  readonly pids?: { readonly outOfMemory: boolean; readonly exitCode: number | undefined };
  /** The share of one CPU that a busy loop got under a limit of a fifth. */
  readonly cpuShare?: number;
  /** Whether the CPU time of the busy loop stood still during a pause, and grew after it. */
  readonly pause?: { readonly stoodStill: boolean; readonly wentOn: boolean };
  /** The limits that a sandbox with 64 MiB and 50 processes sees in its cgroup, and the result of a write there. */
  readonly view?: readonly string[];
  readonly leftover?: readonly string[];
  readonly error?: string;
}

/**
 * Every layout with every runtime, in both ways: the runtime sets the limits, or the agent sets those of a standby. The runtime's own tests
 * cover the missing combination, limits set by runc on v1, on a hybrid host.
 */
const combinations: Record<GuestResult['layout'], readonly (readonly [string, GuestResult['madeOf']])[]> = {
  v2: [
    ['runc', 'nothing'],
    ['crun', 'nothing'],
    ['runc', 'standby'],
  ],
  v1: [
    ['crun', 'nothing'],
    ['runc', 'standby'],
  ],
};

const look =
  'cd /sys/fs/cgroup; for f in memory/memory.limit_in_bytes memory.max pids/pids.max pids.max; do [ ! -e $f ] || cat $f; done; mkdir mine';
/** The interval between two readings of a sandbox's CPU time, and the maximum number of readings. */
const pauseIntervalMs = 500;
const maxIntervals = 20;
const v1Controllers = ['cpu', 'cpuacct', 'cpuset', 'memory', 'pids', 'devices', 'freezer', 'blkio'];

function mountLayout(layout: GuestResult['layout']): void {
  if (layout === 'v2') {
    execFileSync('mount', ['-t', 'cgroup2', 'cgroup2', '/sys/fs/cgroup']);
    writeFileSync('/sys/fs/cgroup/cgroup.subtree_control', '+cpu +memory +pids');
    return;
  }
  execFileSync('umount', ['/sys/fs/cgroup']);
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', '/sys/fs/cgroup']);
  for (const controller of v1Controllers) {
    mkdirSync(join('/sys/fs/cgroup', controller));
    execFileSync('mount', ['-t', 'cgroup', '-o', controller, controller, join('/sys/fs/cgroup', controller)]);
  }
}

async function probe(layout: GuestResult['layout'], program: string, madeOf: GuestResult['madeOf']): Promise<GuestResult> {
  const harness = await openOciHarness(program, madeOf);
  const { backend } = harness;
  const signal = AbortSignal.timeout(600_000);
  const create = async (request: Parameters<typeof backend.create>[0]): Promise<void> =>
    await (madeOf === 'standby' ? createFromStandby(backend, request, signal) : backend.create(request, signal));
  try {
    const findings = await backend.check();
    if (findings.some(({ level }) => level === 'problem')) return { layout, program, madeOf, findings };
    const ended = async (behaviour: Parameters<typeof harness.request>[0], limits: Parameters<typeof harness.request>[1]) => {
      const request = await harness.request(behaviour, limits);
      await create(request);
      await backend.waitExit(request.id, signal);
      const state = await backend.inspect(request.id);
      await backend.destroy(request.id);
      return { phase: state?.phase ?? 'gone', outOfMemory: state?.outOfMemory ?? false, exitCode: state?.exitCode };
    };
    const outOfMemory = await ended({ kind: 'eat-memory' }, { memoryBytes: 32 * 1024 * 1024 });
    const pids = await ended({ kind: 'fork', processes: 60 }, { pids: 20, memoryBytes: 32 * 1024 * 1024 });

    const busy = await harness.requestOf(['/bin/sh', '-c', `(exec > /.drover/run/out 2>&1; ${look}); while :; do :; done`], {
      limits: { cpuMillis: 200, memoryBytes: 64 * 1024 * 1024, diskBytes: 0, pids: 50, shmBytes: 0 },
    });
    await create(busy);
    const record = JSON.parse(readFileSync(join(harness.stateDirectory, 'sandboxes', busy.id, 'record.json'), 'utf8')) as object;
    if ('container' in record !== (madeOf === 'standby')) throw new Error(`it was not made of ${madeOf}`);
    const used = async (): Promise<number> => (await backend.stats(busy.id))?.cpuUsec ?? Number.NaN;
    // The command starts after init's start, and its busy loop follows the view. Neither disturbs the measurement.
    const out = join(busy.runDirectory, 'out');
    const seen = (): string[] => (existsSync(out) ? readFileSync(out, 'utf8') : '').split('\n').slice(0, -1);
    while (seen().length < 3) await delay(200, undefined, { signal });
    const view = seen();
    const grows = async (intervals: number, usec: number): Promise<boolean> => {
      const from = await used();
      for (let left = intervals; left > 0; left--) {
        await delay(pauseIntervalMs, undefined, { signal });
        if ((await used()) - from > usec) return true;
      }
      return false;
    };
    // On any machine a fifth of a CPU takes five times as long as a whole one.
    const [from, began] = [await used(), performance.now()];
    await grows(maxIntervals, 200_000);
    const cpuShare = ((await used()) - from) / 1000 / (performance.now() - began);
    await backend.pause(busy.id);
    // The kernel may account for CPU time late that was used before the freeze.
    let stoodStill = false;
    for (let left = maxIntervals; left > 0 && !stoodStill; left--) stoodStill = !(await grows(1, 0));
    await backend.resume(busy.id);
    const pause = { stoodStill, wentOn: await grows(maxIntervals, 0) };
    await backend.destroy(busy.id);

    const leftover = execFileSync('find', ['/sys/fs/cgroup', '-name', 'sb-*'], { encoding: 'utf8' })
      .split('\n')
      .filter((line) => line !== '');
    return { layout, program, madeOf, findings, outOfMemory, pids, cpuShare, pause, view, leftover };
  } catch (error) {
    return { layout, program, madeOf, findings: [], error: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  } finally {
    await harness.close();
  }
}

for (const layout of ['v2', 'v1'] as const) {
  mountLayout(layout);
  for (const [program, madeOf] of combinations[layout])
    console.log(`drover-result ${JSON.stringify(await probe(layout, program, madeOf))}`);
}
console.log('drover-end');
