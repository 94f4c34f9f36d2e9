import { DroverError } from '@drover/foundation';
import type { EventStore } from '../../store/index.ts';

/**
 * Where a watcher goes on from that names the last event that it has seen; 0: at what comes from now on. One that has seen what is not
 * there, as before a backup was restored, would be told nothing until the ids are there again, and miss what they then mean (I-35).
 * @throws {DroverError} invalid-argument
 */
export async function eventPosition(events: Pick<EventStore, 'lastId'>, afterId: bigint): Promise<number> {
  const last = await events.lastId();
  if (afterId === 0n) return last;
  if (afterId > 0n && afterId <= BigInt(last)) return Number(afterId);
  throw new DroverError('invalid-argument', `there is no event ${afterId}: the newest is ${last}`, {
    hint: 'begin with the first that is kept, --since 0; was the store of the control plane replaced?',
  });
}
