import { imageFanOut } from '../../limits.ts';
import type { HostRow } from '../../model/index.ts';

/** Runs `work` for every host, `imageFanOut` at a time. */
export async function eachOf(hosts: readonly HostRow[], work: (host: HostRow) => Promise<void>): Promise<void> {
  const waiting = hosts.values();
  const worker = async (): Promise<void> => {
    for (const host of waiting) await work(host);
  };
  await Promise.all(Array.from({ length: Math.min(imageFanOut, hosts.length) }, worker));
}
