import { statfs } from 'node:fs/promises';
import { systemClock, type Clock, type Logger } from '@drover/foundation';
import type { Images } from './images/index.ts';
import { fullDiskShare, imageKeptFullDiskMs, imageKeptMs, imageUpkeepMs } from './limits.ts';

/** How long an unused image is retained: less when the disk is nearly full. Milliseconds. */
export function imageAge(disk: { readonly blocks: number; readonly bavail: number }): number {
  return disk.bavail < disk.blocks * (1 - fullDiskShare) ? imageKeptFullDiskMs : imageKeptMs;
}

/** Prunes unused images periodically until the signal aborts. Never rejects. */
export async function collectImages(options: {
  readonly images: Images;
  readonly directory: string;
  readonly logger: Logger;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}): Promise<void> {
  const { images, directory, logger, signal, clock = systemClock } = options;
  while (!signal.aborted) {
    try {
      const { removed, freedBytes } = await images.prune(imageAge(await statfs(directory)));
      if (removed.length > 0) logger.info({ removed, freedBytes }, 'pruned unused images');
    } catch (error) {
      logger.error({ err: error }, 'pruning images');
    }
    try {
      await clock.sleep(imageUpkeepMs, signal);
    } catch {
      return; // the agent ends
    }
  }
}
