import type { Finding } from '../finding.ts';
import type { Backend } from './backend.ts';
import type { BackendEntry, BackendOptions, CheckOptions } from './backend-entry.ts';
import { oci } from './oci/index.ts';

/** The backends of a host; the first is the default. */
const backends: readonly BackendEntry[] = [oci];

export function openBackends(options: BackendOptions): readonly Backend[] {
  return backends.map(({ open }) => open(options));
}

export async function checkBackends(options: CheckOptions): Promise<readonly Finding[]> {
  return (await Promise.all(backends.map(async ({ check }) => await check(options)))).flat();
}
