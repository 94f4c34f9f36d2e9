import { existsSync, watch, type FSWatcher } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '@drover/foundation';

/**
 * Waits until init has read its config, which it takes away just before it listens, and for `ms` at most. The sandbox can put another one
 * there: whoever waits must be able to do without.
 * @throws the signal's reason
 */
export async function configTaken(runDirectory: string, ms: number, clock: Clock, signal: AbortSignal): Promise<void> {
  const config = join(runDirectory, 'config.json');
  if (!existsSync(config)) return;
  const taken = Promise.withResolvers<void>();
  const over = new AbortController();
  let watcher: FSWatcher | undefined;
  try {
    watcher = watch(runDirectory, { persistent: false }, () => {
      if (!existsSync(config)) taken.resolve();
    });
    // The directory went away, or the host has no more inotify watches: the time runs out.
    watcher.on('error', () => watcher?.close());
  } catch {
    // The same, at once.
  }
  try {
    if (!existsSync(config)) return;
    await Promise.race([taken.promise, clock.sleep(ms, AbortSignal.any([signal, over.signal]))]);
  } finally {
    over.abort();
    watcher?.close();
  }
}
