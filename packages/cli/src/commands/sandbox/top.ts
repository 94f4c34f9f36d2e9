import { clearScreenDown, cursorTo } from 'node:readline';
import { isatty } from 'node:tty';
import { timestampDate, timestampMs } from '@bufbuild/protobuf/wkt';
import { formatBytes, parseProject, systemClock } from '@drover/foundation';
import type { api } from '@drover/protocol';
import type { DroverClient } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { topFirstMs, topIntervalMs } from '../../limits.ts';
import { table, type Column } from '../../output/index.ts';
import { reportFailures } from '../failures.ts';

export interface TopFlags {
  readonly once?: boolean;
  readonly project?: string;
}

/** One line: the sandbox's usage, and its CPU share between two samples. */
interface Usage {
  readonly now: api.SandboxUsage;
  /** Percent of one CPU; 200 is two CPUs. Undefined if the previous sample did not have the sandbox. */
  readonly cpuPercent: number | undefined;
}

/** shows usage: repeatedly on a terminal, once in a pipe, with --once, or as JSON. */
export default async function top(cli: Cli, [references]: readonly [readonly string[]], flags: TopFlags): Promise<number> {
  const project = flags.project === undefined ? {} : { project: parseProject(flags.project) };
  const client = await cli.connect();
  const sample = async (): Promise<api.GetStatsResponse> => await client.sandboxes.stats(references, { ...project, signal: cli.signal });
  const first = await sample();
  await systemClock.sleep(topFirstMs, cli.signal);
  let [last, now] = [first, await sample()];
  if (cli.out.json || flags.once === true || !isatty(1)) {
    const usages = usagesOf(last, now);
    cli.out.list(usages, usageJson, columns, 'no sandbox is running');
    await noteStopped(cli, client, references, usages);
    return reportFailures(cli, now.failures);
  }
  for (;;) {
    draw(usagesOf(last, now), now.failures);
    try {
      await systemClock.sleep(topIntervalMs, cli.signal);
      [last, now] = [now, await sample()];
    } catch (error) {
      // Ctrl-C is the normal way to end.
      if (cli.signal.aborted) return 0;
      throw error;
    }
  }
}

function draw(usages: readonly Usage[], failures: readonly api.HostFailure[]): void {
  const lines = table(usages, columns).split('\n');
  for (const { hostName, hostId } of failures) lines.push(`host ${hostName === '' ? hostId : hostName} does not respond`);
  const [rows, cells] = [process.stdout.rows || 24, process.stdout.columns || 80];
  cursorTo(process.stdout, 0, 0);
  clearScreenDown(process.stdout);
  process.stdout.write(
    `${lines
      .slice(0, rows - 1)
      .map((line) => line.slice(0, cells))
      .join('\n')}\n`,
  );
}

/** Sorted by CPU, busiest first. */
function usagesOf(before: api.GetStatsResponse, after: api.GetStatsResponse): readonly Usage[] {
  const known = new Map(before.sandboxes.map((usage) => [usage.id, usage]));
  return after.sandboxes
    .map((now) => ({ now, cpuPercent: cpuPercent(known.get(now.id), now) }))
    .toSorted((a, b) => (b.cpuPercent ?? 0) - (a.cpuPercent ?? 0));
}

export function cpuPercent(before: api.SandboxUsage | undefined, now: api.SandboxUsage): number | undefined {
  if (before?.at === undefined || now.at === undefined || before.startCount !== now.startCount) return undefined;
  const elapsedUsec = (timestampMs(now.at) - timestampMs(before.at)) * 1000;
  if (elapsedUsec <= 0 || now.cpuUsec < before.cpuUsec) return undefined;
  return Math.round((Number(now.cpuUsec - before.cpuUsec) / elapsedUsec) * 1000) / 10;
}

const columns: readonly Column<Usage>[] = [
  { title: 'NAME', value: ({ now }) => (now.project === '' ? now.name : `${now.project}/${now.name}`) },
  { title: 'CPU%', value: ({ cpuPercent: share }) => share?.toFixed(1) ?? '' },
  { title: 'MEMORY', value: ({ now }) => formatBytes(Number(now.memoryBytes)) },
  { title: 'LIMIT', value: ({ now }) => (now.memoryLimitBytes === 0n ? '' : formatBytes(Number(now.memoryLimitBytes))) },
  { title: 'PIDS', value: ({ now }) => String(now.pids) },
  { title: 'HOST', value: ({ now }) => now.hostName },
];

function usageJson({ now, cpuPercent: share }: Usage): unknown {
  return {
    id: now.id,
    project: now.project,
    name: now.name,
    hostId: now.hostId,
    hostName: now.hostName,
    cpuPercent: share ?? null,
    cpuUsec: Number(now.cpuUsec),
    memoryBytes: Number(now.memoryBytes),
    memoryLimitBytes: Number(now.memoryLimitBytes),
    pids: now.pids,
    at: now.at === undefined ? null : timestampDate(now.at).toISOString(),
  };
}

/** Notes the named sandboxes that are not running, since the table omits them. */
async function noteStopped(cli: Cli, client: DroverClient, references: readonly string[], usages: readonly Usage[]): Promise<void> {
  if (references.length === 0 || usages.length === references.length) return;
  const shown = new Set(usages.map(({ now }) => now.id));
  for (const reference of references) {
    const { id } = await client.sandboxes.get(reference, cli.signal);
    if (!shown.has(id)) cli.out.note(`${reference} is not running`);
  }
}
