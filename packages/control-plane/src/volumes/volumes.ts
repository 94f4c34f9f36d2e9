import { create } from '@bufbuild/protobuf';
import { type HostId, type Logger } from '@drover/foundation';
import { link } from '@drover/protocol';
import { publicErrorToWire } from '@drover/protocol/rpc';
import type { Hub, Operation } from '../hub/index.ts';
import { hostCallTimeoutMs } from '../limits.ts';
import type { Store } from '../store/index.ts';
import type { VolumeRow } from '../model/index.ts';

export interface VolumesOptions {
  readonly store: Store;
  readonly hub: Hub;
  readonly logger: Logger;
}

/** Makes hosts create and remove the volumes of the store. */
export class Volumes {
  readonly #options: VolumesOptions;
  /** The call under way for each volume, by name; at most one. */
  readonly #underWay = new Map<string, Promise<void>>();

  constructor(options: VolumesOptions) {
    this.#options = options;
  }

  /**
   * Makes the volume's host create or remove the volume, in one attempt. After a failure, `settleAll` retries.
   * @throws {DroverError} the host's error, or host-unavailable
   */
  async settle(volume: VolumeRow): Promise<void> {
    const running = this.#underWay.get(volume.name);
    if (running !== undefined) return await running;
    const work = this.#settle(volume).finally(() => this.#underWay.delete(volume.name));
    this.#underWay.set(volume.name, work);
    await work;
  }

  /** Starts the pending creations and removals on the hosts that are connected to this replica. Called periodically. */
  async settleAll(): Promise<void> {
    const { store, hub, logger } = this.#options;
    for (const volume of await store.volumes.list({ unsettled: true })) {
      if (!hub.isConnected(volume.hostId) || this.#underWay.has(volume.name)) continue;
      this.settle(volume).catch((error: unknown) => {
        logger.warn({ err: error, volume: volume.name, hostId: volume.hostId }, 'a volume could not be created or removed; retrying');
      });
    }
  }

  /** The used bytes of each volume of the host; undefined when the host does not report them. */
  async used(hostId: HostId, signal: AbortSignal): Promise<ReadonlyMap<string, bigint> | undefined> {
    try {
      const value = await this.#call(hostId, { case: 'listVolumes', value: create(link.ListVolumesSchema) }, signal);
      return value.case === 'volumes' ? new Map(value.value.volumes.map(({ name, usedBytes }) => [name, usedBytes])) : undefined;
    } catch (error) {
      signal.throwIfAborted();
      this.#options.logger.debug({ err: error, hostId }, 'a host did not report its volumes');
      return undefined;
    }
  }

  async #settle({ name, state, hostId, sizeBytes }: VolumeRow): Promise<void> {
    const { volumes } = this.#options.store;
    if (state === 'ready') return;
    try {
      if (state === 'pending') {
        await this.#call(hostId, {
          case: 'createVolume',
          value: create(link.CreateVolumeSchema, { name, sizeBytes: BigInt(sizeBytes) }),
        });
        await volumes.settle(name, state, { state: 'ready', message: '', hint: '' });
      } else {
        await this.#call(hostId, { case: 'removeVolume', value: create(link.RemoveVolumeSchema, { name }) });
        await volumes.drop(name);
      }
    } catch (error) {
      const { message, hint } = publicErrorToWire(error, this.#options.logger, { volume: name });
      await volumes.settle(name, state, { message, hint });
      throw error;
    }
  }

  async #call(hostId: HostId, operation: Operation, signal?: AbortSignal): ReturnType<Hub['call']> {
    const timeout = AbortSignal.timeout(hostCallTimeoutMs);
    return await this.#options.hub.call(hostId, operation, { signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]) });
  }
}
