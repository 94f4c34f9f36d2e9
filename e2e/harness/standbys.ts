import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { standbyFile } from '@drover/init';

/** How many sandboxes the host of a `drover up` has ready: each says so in its run directory, which goes when it is given away. */
export async function readyStandbys(data: string): Promise<number> {
  const root = join(data, 'host', 'run');
  const names = await readdir(root).catch((): string[] => []);
  const ready = await Promise.all(
    names.map(
      async (name) =>
        await stat(join(root, name, standbyFile)).then(
          () => true,
          () => false,
        ),
    ),
  );
  return ready.filter(Boolean).length;
}
