import { Notifier } from '@drover/foundation';
import type { api } from '@drover/protocol';

/** The progress of pulls on several hosts, for one reader: the newest message of each host, and every last one. A slow reader skips messages. */
export class PullProgress {
  readonly #newest = new Map<string, api.PullImageResponse>();
  readonly #last: api.PullImageResponse[] = [];
  readonly #changed = new Notifier();
  #ended = false;

  update(message: api.PullImageResponse): void {
    this.#newest.set(message.hostId, message);
    this.#changed.notify();
  }

  /** The last message of a host. */
  finish(message: api.PullImageResponse): void {
    this.#newest.delete(message.hostId);
    this.#last.push(message);
    this.#changed.notify();
  }

  end(): void {
    this.#ended = true;
    this.#changed.notify();
  }

  async *read(signal: AbortSignal): AsyncGenerator<api.PullImageResponse> {
    for (;;) {
      signal.throwIfAborted();
      const ready = [...this.#newest.values(), ...this.#last.splice(0)];
      this.#newest.clear();
      yield* ready;
      if (ready.length > 0) continue;
      if (this.#ended) return;
      await this.#changed.wait(signal);
    }
  }
}
