import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api, link } from '@drover/protocol';
import { listPageMax, maxStatsReferences } from '../../limits.ts';
import type { HostRow, SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { callHosts } from '../reach/index.ts';

/** The present use of resources by sandboxes, which each host reports for its own. */
export function statsMethod(context: ApiContext): Pick<ServiceImpl<typeof api.SandboxService>, 'getStats'> {
  return {
    async getStats(request, { signal }) {
      const rows = (await requestedRows(context, request)).filter((row) => row.observed === 'running' || row.observed === 'paused');
      const byHost = Map.groupBy(rows, (row) => row.hostId);
      const hosts = (await context.store.hosts.list()).filter((host) => byHost.has(host.id));
      const operation = ({ id }: HostRow) => {
        const sandboxIds = (byHost.get(id) ?? []).map((row) => row.id);
        return { case: 'collectStats' as const, value: create(link.CollectStatsSchema, { sandboxIds }) };
      };
      const used = new Map<string, readonly [HostRow, link.SandboxStats]>();
      const receive = ({ sandboxes }: link.Stats, host: HostRow): void => {
        for (const stats of sandboxes) used.set(stats.sandboxId, [host, stats]);
      };
      const failures = await callHosts(context, hosts, operation, 'stats', receive, signal);
      const sandboxes = rows.flatMap((row) => {
        const found = used.get(row.id);
        return found === undefined ? [] : [usageOf(row, ...found)];
      });
      return create(api.GetStatsResponseSchema, { sandboxes, failures });
    },
  };
}

async function requestedRows({ store }: ApiContext, { sandboxes, project }: api.GetStatsRequest): Promise<readonly SandboxRow[]> {
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
