import { readFile } from 'node:fs/promises';

/** Names of this network namespace's interfaces. From /proc, since /sys shows the namespace of whoever mounted it. */
export async function interfaceNames(): Promise<readonly string[]> {
  const lines = (await readFile('/proc/net/dev', 'utf8')).split('\n');
  return lines.flatMap((line) => /^\s*([^:\s]+):/.exec(line)?.[1] ?? []);
}
