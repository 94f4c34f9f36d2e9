import type { HostId, Logger } from '@drover/foundation';
import type { link } from '@drover/protocol';
import { heartbeatBatch } from '../limits.ts';
import type { Store } from '../store/index.ts';
import type { HostLink } from './host-link.ts';

type Beat = Parameters<Store['hosts']['heartbeats']>[0][number];

/**
 * Stores liveness. It writes heartbeats in batches, the newest of each host (L-9), and ends of streams immediately (L-10). A failed write of
 * an end is retried each round.
 */
export class Liveness {
  readonly #store: Store;
  readonly #logger: Logger;
  readonly #beats = new Map<HostId, Beat>();
  /** Streams that ended and are not marked yet: by host, the newest epoch. */
  readonly #down = new Map<HostId, { readonly epoch: number; readonly reason: string }>();
  /** The current write of heartbeats. An end is marked after it; otherwise the write would make the host ready again. */
  #writing: Promise<void> = Promise.resolve();
  #marking: Promise<void> = Promise.resolve();

  constructor(store: Store, logger: Logger) {
    this.#store = store;
    this.#logger = logger;
  }

  beat(held: HostLink, heartbeat: link.Heartbeat): void {
    this.#beats.set(held.hostId, {
      id: held.hostId,
      epoch: held.epoch,
      at: held.lastSeen,
      loadMilli: heartbeat.loadMilli,
      memoryAvailableBytes: Number(heartbeat.memoryAvailableBytes),
      diskAvailableBytes: Number(heartbeat.diskAvailableBytes),
    });
  }

  /** The stream with this epoch ended. */
  down(hostId: HostId, epoch: number, reason: string): void {
    const beat = this.#beats.get(hostId);
    // A heartbeat that is written after the end must not make the host ready again.
    if (beat !== undefined && beat.epoch <= epoch) this.#beats.delete(hostId);
    if ((this.#down.get(hostId)?.epoch ?? -1) < epoch) this.#down.set(hostId, { epoch, reason });
    this.#marking = Promise.all([this.#marking, this.#mark(hostId)]).then(() => undefined);
  }

  /** Never rejects. */
  async #mark(hostId: HostId): Promise<void> {
    // `flush` reports this failure.
    await this.#writing.catch(() => undefined);
    const entry = this.#down.get(hostId);
    if (entry === undefined) return;
    try {
      await this.#store.hosts.markDown(hostId, entry.epoch, entry.reason);
      if (this.#down.get(hostId) === entry) this.#down.delete(hostId);
    } catch (error) {
      this.#logger.error({ err: error, hostId }, 'a host could not be marked down; retrying');
    }
  }

  /** Writes the pending heartbeats and ends. @throws the error of the store; hosts replace lost heartbeats with their next ones */
  async flush(): Promise<void> {
    await this.#marking;
    for (const hostId of this.#down.keys()) await this.#mark(hostId);
    this.#writing = this.#writeBeats();
    await this.#writing;
  }

  async #writeBeats(): Promise<void> {
    while (this.#beats.size > 0) {
      const batch: Beat[] = [];
      for (const [hostId, beat] of this.#beats) {
        batch.push(beat);
        this.#beats.delete(hostId);
        if (batch.length >= heartbeatBatch) break;
      }
      await this.#store.hosts.heartbeats(batch);
    }
  }
}
