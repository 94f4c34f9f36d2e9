import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';

export interface CreateVolumeOptions {
  /** Its quota. */
  readonly sizeBytes: number;
  /** A host id or name; absent: the control plane chooses a ready host. */
  readonly host?: string;
  readonly signal?: AbortSignal;
}

/** Named volumes, each on one host. */
export interface VolumesApi {
  create(name: string, options: CreateVolumeOptions): Promise<api.Volume>;
  get(name: string, signal?: AbortSignal): Promise<api.Volume>;
  list(options?: { readonly host?: string; readonly signal?: AbortSignal }): Promise<readonly api.Volume[]>;
  /** Refused with volume-in-use while a sandbox has it, running or not. */
  remove(name: string, signal?: AbortSignal): Promise<void>;
}

export function volumesApi(client: Client<typeof api.VolumeService>, calls: Calls): VolumesApi {
  return {
    create: (name, { sizeBytes, host = '', signal }) =>
      calls.mutate(
        (idempotencyKey) => client.createVolume({ idempotencyKey, name, sizeBytes: BigInt(sizeBytes), host }, withSignal(signal)),
        signal,
      ),
    get: (name, signal) => calls.ask(() => client.getVolume({ name }, withSignal(signal)), signal),
    async list({ host = '', signal } = {}) {
      return (await calls.ask(() => client.listVolumes({ host }, withSignal(signal)), signal)).volumes;
    },
    async remove(name, signal) {
      await calls.ask(() => client.removeVolume({ name }, withSignal(signal)), signal);
    },
  };
}
