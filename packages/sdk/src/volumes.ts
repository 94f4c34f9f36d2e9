import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import type { Calls } from './calls.ts';

export interface CreateVolumeOptions {
  /** The volume's quota. */
  readonly sizeBytes: number;
  /** A host id or name; absent: the control plane chooses a ready host. */
  readonly host?: string;
  readonly signal?: AbortSignal;
}

/** Named volumes, each on one host. */
export type VolumesApi = ReturnType<typeof volumesApi>;

export function volumesApi(client: Client<typeof api.VolumeService>, calls: Calls) {
  return {
    create: (name: string, { sizeBytes, host = '', signal }: CreateVolumeOptions): Promise<api.Volume> =>
      calls.mutate(
        (idempotencyKey, options) => client.createVolume({ idempotencyKey, name, sizeBytes: BigInt(sizeBytes), host }, options),
        signal,
      ),
    get: (name: string, signal?: AbortSignal): Promise<api.Volume> => calls.ask((options) => client.getVolume({ name }, options), signal),
    list: async ({ host = '', signal }: { host?: string; signal?: AbortSignal } = {}): Promise<readonly api.Volume[]> =>
      (await calls.ask((options) => client.listVolumes({ host }, options), signal)).volumes,
    /** Rejects with volume-in-use while a sandbox has it, running or not. */
    async remove(name: string, signal?: AbortSignal): Promise<void> {
      await calls.ask((options) => client.removeVolume({ name }, options), signal);
    },
  };
}
