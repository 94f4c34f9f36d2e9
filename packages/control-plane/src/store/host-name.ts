import type { Tx } from '../database/index.ts';

/**
 * The name for a host that calls itself `wanted`: that, or with a number behind it while another host has the name. Two machines that were
 * installed from one image have the same hostname, and commands name hosts.
 * @param present the name that the host has already; a numbered one stays as long as the other host has the plain one
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
