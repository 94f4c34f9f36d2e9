import type { MessageInitShape } from '@bufbuild/protobuf';
import type { link } from '@drover/protocol';
import { hostEventsPerFrame } from '@drover/spec';

export type HostEventInit = MessageInitShape<typeof link.HostEventSchema>;

/** Events of sandboxes that wait for the link, in order. They outlive a stream; beyond the limit the oldest are dropped and counted. */
export class UnsentEvents {
  #waiting: HostEventInit[] = [];
  #dropped = 0;

  add(event: HostEventInit): void {
    this.#waiting.push(event);
    if (this.#waiting.length <= hostEventsPerFrame) return;
    this.#waiting.shift();
    this.#dropped++;
  }

  get size(): number {
    return this.#waiting.length;
  }

  /** Removes and returns everything that waits. */
  take(): { readonly events: HostEventInit[]; readonly dropped: number } {
    const taken = { events: this.#waiting, dropped: this.#dropped };
    this.#waiting = [];
    this.#dropped = 0;
    return taken;
  }
}
