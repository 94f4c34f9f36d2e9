import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { newSandboxId, type SandboxId } from '@drover/foundation';
import { standbyFile } from '@drover/init';
import { OciRuntime } from '../oci/index.ts';
import type { CreateRequest } from '../runtime.ts';

/** Makes a standby that is ready to be given to the request. */
export async function standByFor(runtime: OciRuntime, request: CreateRequest, id = newSandboxId()): Promise<SandboxId> {
  const runDirectory = `${request.runDirectory}-${id}`;
  await mkdir(runDirectory, { mode: 0o700 });
  if (runtime.standBy === undefined) throw new Error('this runtime makes no standbys');
  const { network, initDirectory } = request;
  const signal = AbortSignal.timeout(20_000);
  await runtime.standBy({ id, network, initDirectory, runDirectory }, signal);
  // As `Standbys` does. An init that is still being loaded dies when its root changes: its files are in neither for a moment.
  while (!existsSync(join(runDirectory, standbyFile))) await delay(5, undefined, { signal });
  return id;
}

/** Makes every sandbox of a standby. */
export class RuntimeOfStandbys extends OciRuntime {
  override async create(request: CreateRequest, signal: AbortSignal): Promise<void> {
    await super.create({ ...request, standby: await standByFor(this, request) }, signal);
  }
}
