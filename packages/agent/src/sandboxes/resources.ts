import type { Backend } from '../backends/index.ts';
import { maxOomVictims, resourceCheckMs } from '../limits.ts';
import { limitsReached, volumesOf } from './limits-reached.ts';
import type { SandboxRecord } from './record.ts';
import type { SandboxHost } from './start.ts';

/** One run of a sandbox whose resources are watched. */
export interface WatchedRun {
  readonly host: SandboxHost;
  readonly backend: Backend;
  readonly record: () => SandboxRecord;
  readonly update: (change: Partial<SandboxRecord>) => Promise<void>;
  /** Runs a task in the sandbox's executor, unless the run has ended. */
  readonly exclusively: (task: () => Promise<void>) => Promise<void>;
}

/** reports each kill for want of memory, and each limit that is reached, until the signal aborts. */
export async function watchResources(run: WatchedRun, signal: AbortSignal): Promise<void> {
  const { clock, logger } = run.host;
  const reported = new Set<string>();
  let isFailing = false;
  for (;;) {
    await clock.sleep(resourceCheckMs, signal);
    try {
      await checkResources(run, reported);
      isFailing = false;
    } catch (error) {
      // The next check finds what this one missed; a check that keeps failing is logged once.
      if (!isFailing && !signal.aborted) {
        logger.warn({ err: error, sandbox: run.record().id }, 'the resources of a sandbox could not be checked');
      }
      isFailing = true;
    }
  }
}

/** @param reported the resources whose limits were reached at the last check; replaced */
async function checkResources({ host, backend, record, update, exclusively }: WatchedRun, reported: Set<string>): Promise<void> {
  const { id } = record();
  const kills = await backend.oomKills(id);
  const limits = limitsReached(await backend.exhausted(id), await host.volumes.full(volumesOf(record())));
  const message = limits.map((limit) => limit.message).join('; ');
  if (kills <= record().oomKills && message === record().message) return;
  await exclusively(async () => {
    const change = await reportOomKills(host, backend, record());
    if (change !== undefined) await update(change);
    if (record().phase !== 'running' && record().phase !== 'paused') return;
    for (const value of limits.filter((limit) => !reported.has(limit.resource))) {
      host.report({ id, at: host.clock.now(), event: { case: 'limitReached', value } });
    }
    reported.clear();
    for (const { resource } of limits) reported.add(resource);
    if (message !== record().message) await update({ message });
  });
}

/** Reports the kills that the record does not count yet, by process where the kernel names them. Returns what to record. */
export async function reportOomKills(
  host: SandboxHost,
  backend: Backend,
  { id, oomKills }: SandboxRecord,
): Promise<Pick<SandboxRecord, 'oomKills'> | undefined> {
  const total = await backend.oomKills(id);
  const added = total - oomKills;
  if (added <= 0) return undefined;
  const victims = await backend.oomVictims(id, Math.min(added, maxOomVictims));
  const kills = new Map<string, number>();
  for (const name of victims) kills.set(name, (kills.get(name) ?? 0) + 1);
  if (victims.length < added) kills.set('', added - victims.length);
  for (const [process, count] of kills) {
    host.report({ id, at: host.clock.now(), event: { case: 'oomKill', value: { process, count } } });
  }
  return { oomKills: total };
}
