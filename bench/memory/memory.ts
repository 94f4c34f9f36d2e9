import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { DroverClient } from '@drover/sdk';
import { initNodeFlags } from '@drover/init';
import type { Docker } from '../create/docker.ts';
import type { Goal, Row, Section } from '../result.ts';
import { round, summarize, type Summary } from '../stats.ts';

const mb = 1_000_000;
/** Idle sandboxes, each running `sleep`. */
const sandboxes = 10;
/** How long they are left alone before they are looked at, ms: init gives memory back when it has had nothing to do. */
const quietMs = 15_000;

export interface MemoryOptions {
  readonly client: DroverClient;
  readonly image: string;
  /** The agent's state directory: init runs from below it. */
  readonly stateDirectory: string;
  readonly docker: Docker | undefined;
}

/** smaps_rollup of one process (proc(5)), bytes. */
interface Private {
  readonly clean: number;
  readonly dirty: number;
  readonly rss: number;
}

/** what one idle sandbox's init costs, beside a bare Node.js and a containerd shim. */
export async function measureMemory({ client, image, stateDirectory, docker }: MemoryOptions): Promise<Section> {
  const made = await Promise.all(
    Array.from({ length: sandboxes }, async () => {
      const { id } = await client.sandboxes.create({ spec: { image, command: ['/bin/busybox', 'sleep', '1000'] } });
      await client.sandboxes.waitFor(id, ['running'], { timeoutMs: 60_000 });
      return id;
    }),
  );
  const bare = await bareNode(stateDirectory, 3);
  try {
    await using idle = await docker?.idle(sandboxes);
    await delay(quietMs);
    const pids = await initPids(stateDirectory, made);
    const inits = pids.idle.map(privateOf);
    if (inits.length !== sandboxes) throw new Error(`${inits.length} inits were found for ${sandboxes} sandboxes`);
    const nodes = bare.map((child) => privateOf(child.pid ?? 0));
    const rows: Row[] = [...rowsOf('drover-init', inits), ...rowsOf('bare `node -e setInterval`', nodes)];
    // A host may keep none.
    if (pids.standbys.length > 0) rows.push(...rowsOf('standby that waits', pids.standbys.map(privateOf)));
    const absent: string[] = [];
    if (docker === undefined || idle === undefined) absent.push('Docker: not here');
    else {
      const { daemons, shims } = await docker.pids();
      rows.push(...rowsOf('containerd-shim of an idle container', shims.map(privateOf)));
      rows.push({
        what: 'dockerd and containerd, private, together',
        unit: 'MB',
        value: round(sum(daemons.map((pid) => total(privateOf(pid)))) / mb),
      });
    }
    const { p50 } = summaryOf(inits, (use) => use.dirty);
    const all = summaryOf(inits, total).p50;
    const goal: Goal = {
      what: `private memory of an idle sandbox’s init (dirty, P50; with clean pages ${all} MB)`,
      goal: '≤ 10 MB',
      figure: `${p50} MB`,
      met: p50 <= 10,
    };
    return {
      name: 'memory',
      title: 'Memory of an idle sandbox',
      how:
        `${sandboxes} sandboxes that sleep, looked at ${quietMs / 1000} s after the last call, each init’s /proc/PID/smaps_rollup. What counts is ` +
        'private and dirty: it is there for this sandbox alone and cannot be dropped. Private clean pages are of files (node’s own text, mapped ' +
        'by one process alone at that moment); the kernel drops them when it needs to, and they are shown beside it. Standbys are what the host keeps ready for the next creates.',
      rows,
      goals: [goal],
      absent,
    };
  } finally {
    for (const child of bare) child.kill('SIGKILL');
    await Promise.all(made.map(async (id) => await client.sandboxes.remove(id)));
    await Promise.all(made.map(async (id) => await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: 60_000 })));
  }
}

/** Node under the loader and with the libraries that init has, doing nothing. */
async function bareNode(stateDirectory: string, count: number) {
  const directory = await initDirectory(stateDirectory);
  const loader = (await readdir(directory)).find((name) => name.startsWith('ld-linux')) ?? '';
  const args = ['--library-path', join(directory, 'lib'), join(directory, 'node'), ...initNodeFlags, '-e', 'setInterval(() => {}, 1000)'];
  const children = Array.from({ length: count }, () => spawn(join(directory, loader), args, { stdio: 'ignore', env: {} }));
  await Promise.all(children.map(async (child) => await once(child, 'spawn')));
  return children;
}

async function initDirectory(stateDirectory: string): Promise<string> {
  const root = join(stateDirectory, 'init');
  const name = (await readdir(root)).find((entry) => entry.startsWith('init-'));
  if (name === undefined) throw new Error(`no init directory in ${root}`);
  return join(root, name);
}

/** The first processes of these sandboxes, and of what only stands by, by the host's own records. */
async function initPids(stateDirectory: string, ids: readonly string[]): Promise<{ readonly idle: number[]; readonly standbys: number[] }> {
  const root = join(stateDirectory, 'sandboxes');
  const [idle, standbys]: [number[], number[]] = [[], []];
  for (const id of await readdir(root)) {
    // One that comes or goes at this moment has none.
    const text = await readFile(join(root, id, 'record.json'), 'utf8').catch(() => '{}');
    const { pid, phase } = JSON.parse(text) as { readonly pid?: number; readonly phase?: string };
    if (pid === undefined) continue;
    if (ids.includes(id)) idle.push(pid);
    else if (phase === 'creating') standbys.push(pid);
  }
  return { idle, standbys };
}

function privateOf(pid: number): Private {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  const of = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? 0) * 1024;
  return { clean: of('Private_Clean'), dirty: of('Private_Dirty'), rss: of('Rss') };
}

function total(use: Private): number {
  return use.clean + use.dirty;
}

function rowsOf(what: string, uses: readonly Private[]): Row[] {
  return [
    { what: `${what}: private dirty`, unit: 'MB', summary: summaryOf(uses, (use) => use.dirty) },
    { what: `${what}: private clean`, unit: 'MB', summary: summaryOf(uses, (use) => use.clean) },
    { what: `${what}: resident, shared included`, unit: 'MB', summary: summaryOf(uses, (use) => use.rss) },
  ];
}

function summaryOf(uses: readonly Private[], of: (use: Private) => number): Summary {
  return summarize(uses.map((use) => of(use) / mb));
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
