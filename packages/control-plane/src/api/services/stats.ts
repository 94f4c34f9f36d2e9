import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api, link } from '@drover/protocol';
import { hostCallTimeoutMs, listPageMax, maxStatsReferences } from '../../limits.ts';
import type { HostRow, SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { hostFailure } from '../convert/index.ts';
import { eachOf } from '../reach/index.ts';

/** What sandboxes use now: each host is asked for its own, and one that does not answer does not keep the others from answering. */
export function statsMethod(context: ApiContext): Pick<ServiceImpl<typeof api.SandboxService>, 'getStats'> {
  const { store, hub, clock } = context;

  async function asked(request: api.GetStatsRequest): Promise<readonly SandboxRow[]> {
    const { sandboxes, project } = request;
    if (sandboxes.length > maxStatsReferences) {
      throw new DroverError('invalid-argument', `${sandboxes.length} sandboxes are named`, { hint: `name at most ${maxStatsReferences}` });
    }
    if (sandboxes.length === 0) return await store.sandboxes.list({ limit: listPageMax, ...(project === '' ? {} : { project }) });
    const rows = new Map<string, SandboxRow>();
    for (const reference of sandboxes) {
      const row = await store.sandboxes.find(reference);
      rows.set(row.id, row);
    }
    return [...rows.values()];
  }

  return {
    async getStats(request, { signal }) {
      const rows = (await asked(request)).filter((row) => row.observed === 'running' || row.observed === 'paused');
      const byHost = Map.groupBy(rows, (row) => row.hostId);
      const used = new Map<string, readonly [HostRow, link.SandboxStats]>();
      const failures: api.HostFailure[] = [];
      const hosts = (await store.hosts.list()).filter((host) => byHost.has(host.id));
      await eachOf(hosts, async (host) => {
        const sandboxIds = (byHost.get(host.id) ?? []).map((row) => row.id);
        try {
          const result = await hub.call(
            host.id,
            { case: 'collectStats', value: create(link.CollectStatsSchema, { sandboxIds }) },
            {
              signal: AbortSignal.any([signal, AbortSignal.timeout(hostCallTimeoutMs)]),
              deadline: new Date(clock.now() + hostCallTimeoutMs),
            },
          );
          if (result.case !== 'stats') throw new DroverError('protocol-violation', `host ${host.name} answered with something else`);
          for (const stats of result.value.sandboxes) used.set(stats.sandboxId, [host, stats]);
        } catch (error) {
          signal.throwIfAborted();
          failures.push(hostFailure(context, host, error));
        }
      });
      const sandboxes = rows.flatMap((row) => {
        const found = used.get(row.id);
        return found === undefined ? [] : [usageOf(row, ...found)];
      });
      return create(api.GetStatsResponseSchema, { sandboxes, failures });
    },
  };
}

function usageOf(row: SandboxRow, host: HostRow, stats: link.SandboxStats): api.SandboxUsage {
  return create(api.SandboxUsageSchema, {
    id: row.id,
    project: row.project,
    name: row.name,
    hostId: host.id,
    hostName: host.name,
    cpuUsec: stats.cpuUsec,
    memoryBytes: stats.memoryBytes,
    memoryLimitBytes: row.spec.resources?.memoryBytes ?? 0n,
    pids: stats.pids,
    startCount: BigInt(row.startCount),
    ...(stats.at === undefined ? {} : { at: stats.at }),
  });
}
