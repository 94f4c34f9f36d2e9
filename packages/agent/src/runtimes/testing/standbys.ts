import { mkdir } from 'node:fs/promises';
import { newSandboxId, type SandboxId } from '@drover/foundation';
import { OciRuntime } from '../oci/index.ts';
import type { CreateRequest } from '../runtime.ts';

/** Makes a standby that the request can be given. */
export async function standByFor(runtime: OciRuntime, request: CreateRequest, id = newSandboxId()): Promise<SandboxId> {
  const runDirectory = `${request.runDirectory}-${id}`;
  await mkdir(runDirectory, { mode: 0o700 });
  if (runtime.standBy === undefined) throw new Error('this runtime makes no standbys');
  const { network, initDirectory } = request;
  await runtime.standBy({ id, network, initDirectory, runDirectory }, AbortSignal.timeout(20_000));
  return id;
}

/** Makes every sandbox of a standby. */
export class RuntimeOfStandbys extends OciRuntime {
  override async create(request: CreateRequest, signal: AbortSignal): Promise<void> {
    await super.create({ ...request, standby: await standByFor(this, request) }, signal);
  }
}
