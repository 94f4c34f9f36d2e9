import type { Store } from '../store/index.ts';
import type { HostLink } from './host-link.ts';

/** The change that ends a stream: its host was removed (L-4), or has a newer stream on another replica (L-11). */
export type Verdict = 'removed' | 'superseded';

/** Compares the streams of this replica with the stored hosts, which any replica may have changed. */
export async function audit(store: Store, links: ReadonlyMap<string, HostLink>): Promise<readonly (readonly [HostLink, Verdict])[]> {
  if (links.size === 0) return [];
  const verdicts: (readonly [HostLink, Verdict])[] = [];
  const rows = new Map((await store.hosts.list()).map((row) => [row.id, row]));
  for (const held of links.values()) {
    // A host that is not listed joined after the read, or was deleted: its own row decides.
    const row = rows.get(held.hostId) ?? (await store.hosts.get(held.hostId));
    if (row === undefined || row.removedAt !== undefined) verdicts.push([held, 'removed']);
    else if (row.epoch > held.epoch) verdicts.push([held, 'superseded']);
  }
  return verdicts;
}
