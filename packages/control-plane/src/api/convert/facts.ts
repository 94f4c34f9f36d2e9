import type { HostId } from '@drover/foundation';
import type { api } from '@drover/protocol';
import type { Sessions } from '../../sessions/index.ts';
import type { HostRow, SandboxRow } from '../../model/index.ts';
import type { Tables } from '../../store/index.ts';
import { emptyView } from '../../worldview/index.ts';
import { sandboxToWire } from './messages.ts';
import type { SandboxFacts } from './status.ts';

type Sources = Pick<Tables, 'hosts' | 'views' | 'identities'>;

/** The facts about these rows, with one query per table. */
export async function factsOf(
  tables: Sources,
  sessions: Sessions,
  rows: readonly SandboxRow[],
): Promise<(row: SandboxRow) => SandboxFacts> {
  const ids = rows.map(({ id }) => id);
  const hosts = await hostsOf(tables, rows);
  const views = await tables.views.get(ids);
  const identities = await tables.identities.findBySandboxes(ids);
  return (row) => ({
    host: hosts.get(row.hostId),
    view: views.get(row.id) ?? emptyView(row.id),
    identity: identities.get(row.id),
    live: sessions.status(row.id),
  });
}

export async function describe(tables: Sources, sessions: Sessions, rows: readonly SandboxRow[]): Promise<api.Sandbox[]> {
  const facts = await factsOf(tables, sessions, rows);
  return rows.map((row) => sandboxToWire(row, facts(row)));
}

export async function describeOne(tables: Sources, sessions: Sessions, row: SandboxRow): Promise<api.Sandbox> {
  return sandboxToWire(row, (await factsOf(tables, sessions, [row]))(row));
}

/** As `describeOne`, for a sandbox that was just created: there is nothing but its row. @param hosts rows that were already read */
export async function describeNew(tables: Sources, sessions: Sessions, row: SandboxRow, hosts: readonly HostRow[]): Promise<api.Sandbox> {
  const host = hosts.find(({ id }) => id === row.hostId) ?? (await hostsOf(tables, [row])).get(row.hostId);
  return sandboxToWire(row, { host, view: emptyView(row.id), identity: undefined, live: sessions.status(row.id) });
}

async function hostsOf({ hosts }: Sources, rows: readonly SandboxRow[]): Promise<ReadonlyMap<HostId | undefined, HostRow>> {
  const ids = new Set(rows.flatMap(({ hostId }) => (hostId === undefined ? [] : [hostId])));
  const [first] = ids;
  if (first === undefined) return new Map();
  if (ids.size > 1) return new Map((await hosts.list({ includeRemoved: true })).map((host) => [host.id, host]));
  const host = await hosts.get(first);
  return new Map(host === undefined ? [] : [[first, host]]);
}
