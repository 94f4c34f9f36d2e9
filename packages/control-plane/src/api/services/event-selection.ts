import { clip, DroverError, hasCode, isHostId, isSandboxId } from '@drover/foundation';
import type { EventStore, Store } from '../../store/index.ts';

/**
 * The position of a watcher that names the last event it has received; 0: from now on. A watcher whose event does not exist, as after the
 * restoration of a backup, would receive nothing until that id is reached, and miss what happened until then (I-35).
 * @throws {DroverError} invalid-argument
 */
export async function eventPosition(events: Pick<EventStore, 'lastId'>, afterId: bigint): Promise<number> {
  const last = await events.lastId();
  if (afterId === 0n) return last;
  if (afterId > 0n && afterId <= BigInt(last)) return Number(afterId);
  throw new DroverError('invalid-argument', `there is no event ${afterId}: the newest is ${last}`, {
    hint: 'begin with the oldest retained one, --since 0; was the store of the control plane replaced?',
  });
}

/**
 * The subject for a reference: an id, or the id of the sandbox or host with that name. Deleted ones are found for as long as they are
 * retained.
 * @throws {DroverError} sandbox-not-found when nothing has that name and no event has that subject; invalid-argument when several do
 */
export async function eventSubject(
  { sandboxes, hosts, events }: Pick<Store, 'sandboxes' | 'hosts' | 'events'>,
  reference: string,
): Promise<string> {
  const [sandbox, host] = await Promise.all([
    found(async () => await sandboxes.find(reference, { deleted: true })),
    found(async () => await hosts.find(reference)),
  ]);
  if (sandbox !== undefined && host !== undefined && sandbox.deletedAt === undefined) {
    throw new DroverError('invalid-argument', `both a sandbox and a host are named ${JSON.stringify(clip(reference))}`, {
      hint: `give an id: ${sandbox.id} or ${host.id}`,
    });
  }
  const row = host ?? sandbox;
  if (row !== undefined) return row.id;
  // Events outlive their subjects.
  if ((await events.after(0, 1, { subject: reference })).length > 0) return reference;
  const kind = isSandboxId(reference) ? 'sandbox' : isHostId(reference) ? 'host' : 'sandbox or host';
  throw new DroverError('sandbox-not-found', `there is no ${kind} ${JSON.stringify(clip(reference))}, and no event of one is retained`, {
    hint: '`drover sandbox ls --all` and `drover host ls --all` list them',
  });
}

async function found<T>(find: () => Promise<T>): Promise<T | undefined> {
  try {
    return await find();
  } catch (error) {
    if (hasCode(error, 'sandbox-not-found', 'host-not-found')) return undefined;
    throw error;
  }
}
