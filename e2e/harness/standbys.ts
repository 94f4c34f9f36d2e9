import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { standbyFile } from '@drover/init';

/** Counts the ready standbys of the host of a `drover up`. Each has a marker in its run directory until a sandbox adopts it. */
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
