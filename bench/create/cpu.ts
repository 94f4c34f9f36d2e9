import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import type { DroverClient } from '@drover/sdk';
import { availableMemory } from '../machine.ts';
import type { Row, Section } from '../result.ts';
import { round } from '../stats.ts';
import { cpuBetween, cpuTimes, parts, type Part, type Processes } from './cpu-time.ts';

/** Memory that one running sandbox may take, bytes. */
const bytesEach = 60 * 2 ** 20;

/** Creates of each host that are not measured. */
const warmUps = 10;

/** A Drover whose creates are measured. */
export interface MeasuredHost {
  readonly name: string;
  readonly client: DroverClient;
  readonly controlPlane: number;
  readonly agent: number;
  readonly gateway: number;
  /** The agent's state directory. */
  readonly stateDirectory: string;
  /** Waits until the host does nothing in the background. */
  readonly quiet: () => Promise<void>;
}

/** How CPU time per create is measured; the figure is the mean over all creates of all rounds. */
const plans = [
  { at: 1, rounds: 10 },
  { at: 10, rounds: 3 },
  { at: 50, rounds: 1 },
] as const;
const quickPlans = [
  { at: 1, rounds: 3 },
  { at: 10, rounds: 1 },
] as const;

/** Measures where the CPU time of a create goes. */
export async function measureCpu(hosts: readonly MeasuredHost[], image: string, quick: boolean): Promise<Section> {
  const rows: Row[] = [];
  const absent: string[] = [];
  // The first creates of a process compile its code.
  for (const host of hosts) {
    for (let i = 0; i < warmUps; i++) await remove(host.client, await startHeld(host.client, image));
  }
  for (const { at, rounds } of quick ? quickPlans : plans) {
    if (availableMemory() < at * bytesEach) {
      absent.push(`${at} at once: not enough memory`);
      continue;
    }
    for (const host of hosts) rows.push(...(await measureHost(host, image, at, rounds)));
  }
  return {
    name: 'cpu',
    title: 'CPU time of a create',
    how:
      'From the call until the first byte of the program, by process, in ms of CPU per create: the mean over all creates. The programs of the ' +
      'agent are runc, ip, nft and others. The machine is everything that its CPUs did; with the refill, until the standbys that the creates ' +
      `used up are ready again. Creates per second per core are what the machine's CPU time allows. The machine has ${cpus().length} CPUs.`,
    rows,
    goals: [],
    absent,
  };
}

async function measureHost(host: MeasuredHost, image: string, at: number, rounds: number): Promise<readonly Row[]> {
  const processes: Processes = { ...host, client: process.pid, inits: () => initPids(host.stateDirectory) };
  const total = Object.fromEntries(parts.map((part) => [part, 0])) as Record<Part, number>;
  let refilled = 0;
  for (let round_ = 0; round_ < rounds; round_++) {
    await host.quiet();
    const before = cpuTimes(processes);
    const ids = await Promise.all(Array.from({ length: at }, async () => await startHeld(host.client, image)));
    const after = cpuTimes(processes);
    const spent = cpuBetween(processes, before, after);
    for (const part of parts) total[part] += spent[part];
    await host.quiet();
    refilled += cpuBetween(processes, before, cpuTimes(processes)).machine;
    await Promise.all(ids.map(async (id) => await remove(host.client, id)));
  }
  const creates = at * rounds;
  const row = (what: string, value: number, unit = 'ms'): Row => ({ what: `${host.name}: ${what}`, at, unit, value: round(value) });
  return [
    ...parts.map((part) => ({
      ...row(part, total[part] / creates),
      ...(part !== 'machine' && { ratio: { to: 'machine', value: round(total[part] / total.machine) } }),
    })),
    row('machine, with the refill', refilled / creates),
    row('creates per second per core', (1000 * creates) / total.machine, '/s'),
  ];
}

/** Creates a sandbox whose program stays after its first output, so that init can be measured. Resolves at the first byte. */
async function startHeld(client: DroverClient, image: string): Promise<string> {
  const command = ['/bin/busybox', 'sh', '-c', 'echo first; exec /bin/busybox sleep 1000'];
  const { id } = await client.sandboxes.create({ spec: { image, command } });
  const main = client.sandboxes.exec(id, { execId: 'main', replay: true });
  main.exit.catch(() => undefined);
  main.stderr.resume();
  await Promise.race([once(main.stdout, 'data'), main.exit]);
  main.detach();
  return id;
}

async function remove(client: DroverClient, id: string): Promise<void> {
  await client.sandboxes.remove(id, { graceMs: 1 });
  await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: 60_000 });
}

/** The first processes of sandboxes and standbys, from the host's own records. */
function initPids(stateDirectory: string): readonly number[] {
  const root = join(stateDirectory, 'sandboxes');
  return readdirSync(root).flatMap((id) => {
    try {
      const { pid } = JSON.parse(readFileSync(join(root, id, 'record.json'), 'utf8')) as { readonly pid?: number };
      return pid === undefined ? [] : [pid];
    } catch {
      // The sandbox was just created or removed.
      return [];
    }
  });
}
