import { clip, DroverError, hasCode, isHostId, isSandboxId } from '@drover/foundation';
import type { Store } from '../../store/index.ts';

/**
 * The subject that a person means: an id, or the id of the sandbox or host that the name belongs to; of what was deleted too, for as long
 * as it is kept.
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
  // Events outlive what they are about.
  if ((await events.after(0, 1, { subject: reference })).length > 0) return reference;
  const kind = isSandboxId(reference) ? 'sandbox' : isHostId(reference) ? 'host' : 'sandbox or host';
  throw new DroverError('sandbox-not-found', `there is no ${kind} ${JSON.stringify(clip(reference))}, and no event of one is kept`, {
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
