import { Notifier, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import type { EventFeed } from '../feed/index.ts';
import { addressPollMs, addressWaitMs, addressWaits, addressWaitsPerHost } from '../limits.ts';
import type { SandboxRow } from '../model/index.ts';
import type { SandboxStore } from '../store/index.ts';

/**
 * Reads sandboxes' records for Register (I-14). A host reports the address of a start before the start, but on a different stream from the
 * one that carries the sandbox's call, and the store may delay the report: a call may precede the address. A record without the address is
 * therefore read again after each of its events and every `addressPollMs`, for `addressWaitMs` at most.
 */
export class AddressWait {
  readonly #sandboxes: Pick<SandboxStore, 'get'>;
  readonly #feed: Pick<EventFeed, 'on'> | undefined;
  readonly #clock: Clock;
  #waiting = 0;
  readonly #ofHost = new Map<HostId, number>();

  constructor(sandboxes: Pick<SandboxStore, 'get'>, feed: Pick<EventFeed, 'on'> | undefined, clock: Clock) {
    this.#sandboxes = sandboxes;
    this.#feed = feed;
    this.#clock = clock;
  }

  /**
   * @returns the record as soon as it satisfies `shows`, or the last one read
   * @param hostId the host whose link carried the call; the limit per host leaves room for other hosts
   * @throws the error of the store
   */
  async read(id: SandboxId, hostId: HostId, shows: (row: SandboxRow | undefined) => boolean): Promise<SandboxRow | undefined> {
    let row = await this.#sandboxes.get(id);
    const ofHost = this.#ofHost.get(hostId) ?? 0;
    if (shows(row) || this.#waiting >= addressWaits || ofHost >= addressWaitsPerHost) return row;
    const changed = new Notifier(this.#clock);
    const off = this.#feed?.on(id, changed.notify);
    const until = this.#clock.now() + addressWaitMs;
    this.#waiting++;
    this.#ofHost.set(hostId, ofHost + 1);
    try {
      for (;;) {
        // Read after the listener is attached, so that no change is missed.
        row = await this.#sandboxes.get(id);
        const left = until - this.#clock.now();
        if (shows(row) || left <= 0) return row;
        await changed.wait(undefined, Math.min(left, addressPollMs));
      }
    } finally {
      this.#waiting--;
      const left = (this.#ofHost.get(hostId) ?? 1) - 1;
      if (left > 0) this.#ofHost.set(hostId, left);
      else this.#ofHost.delete(hostId);
      off?.();
    }
  }
}
