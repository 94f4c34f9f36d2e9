import type { Store } from '../store/index.ts';
import type { HostLink } from './host-link.ts';

/** What became of a host elsewhere: removed (L-4), or taken over by a newer stream (L-11). */
export type Verdict = 'removed' | 'superseded';

/** Compares the streams of this replica with the store's hosts, whoever changed those. */
export async function audit(store: Store, links: ReadonlyMap<string, HostLink>): Promise<readonly (readonly [HostLink, Verdict])[]> {
  if (links.size === 0) return [];
  const verdicts: (readonly [HostLink, Verdict])[] = [];
  const rows = new Map((await store.hosts.list()).map((row) => [row.id, row]));
  for (const held of links.values()) {
    // One that the list does not have is newer than the list, or gone: its own row decides.
    const row = rows.get(held.hostId) ?? (await store.hosts.get(held.hostId));
    if (row === undefined || row.removedAt !== undefined) verdicts.push([held, 'removed']);
    else if (row.epoch > held.epoch) verdicts.push([held, 'superseded']);
  }
  return verdicts;
}
