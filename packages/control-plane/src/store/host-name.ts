import type { Tx } from '../database/index.ts';

/**
 * The name for a host with the hostname `wanted`. If another host has that name, a number is appended: machines installed from one image
 * share a hostname, but commands address hosts by name.
 * @param present the host's present name; a numbered name stays while another host has the plain one
 */
export async function hostNameFor(tx: Tx, id: string, wanted: string, present = ''): Promise<string> {
  if (present === wanted || !(await isTaken(tx, id, wanted))) return wanted;
  if (present.startsWith(`${wanted}-`) && /^\d+$/.test(present.slice(wanted.length + 1))) return present;
  for (let number = 2; ; number++) {
    const name = `${wanted}-${number}`;
    if (!(await isTaken(tx, id, name))) return name;
  }
}

async function isTaken(tx: Tx, id: string, name: string): Promise<boolean> {
  const others = tx.db.selectFrom('hosts').select('id').where('name', '=', name).where('id', '<>', id).where('removed_at', 'is', null);
  return (await others.limit(1).executeTakeFirst()) !== undefined;
}
