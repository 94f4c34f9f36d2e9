import type { Clock } from '@drover/foundation';
import { progressEveryMs } from '../limits.ts';
import type { PullProgress } from './images.ts';

type Listener = (progress: PullProgress) => void;

/** Reports the progress of an image to its waiters, at a bounded rate. A new waiter receives the latest report immediately. */
export class ProgressReport {
  readonly #clock: Clock;
  readonly #listeners = new Set<Listener>();
  #latest: PullProgress;
  #reportedAt = Number.NEGATIVE_INFINITY;
  readonly #done = new Map<string, number>();
  #totalBytes = 0;
  #totalLayers = 0;
  #doneLayers = 0;

  constructor(clock: Clock, message: string) {
    this.#clock = clock;
    this.#latest = { message, doneBytes: 0, totalBytes: 0, doneLayers: 0, totalLayers: 0 };
  }

  /** @returns stops listening */
  listen(listener: Listener): () => void {
    this.#listeners.add(listener);
    listener(this.#latest);
    return () => this.#listeners.delete(listener);
  }

  /** A new step, reported immediately. */
  step(message: string): void {
    this.#update(message, true);
  }

  total(bytes: number, layers: number): void {
    this.#totalBytes = bytes;
    this.#totalLayers = layers;
    // Of an earlier attempt.
    this.#done.clear();
    this.#doneLayers = 0;
  }

  /** One more layer is unpacked; reported immediately. */
  layerDone(): void {
    this.#doneLayers++;
    this.#update(this.#latest.message, true);
  }

  bytes(part: string, doneBytes: number): void {
    this.#done.set(part, doneBytes);
    this.#update(this.#latest.message, false);
  }

  #update(message: string, now: boolean): void {
    let doneBytes = 0;
    for (const bytes of this.#done.values()) doneBytes += bytes;
    this.#latest = { message, doneBytes, totalBytes: this.#totalBytes, doneLayers: this.#doneLayers, totalLayers: this.#totalLayers };
    if (!now && this.#clock.now() - this.#reportedAt < progressEveryMs) return;
    this.#reportedAt = this.#clock.now();
    for (const listener of this.#listeners) listener(this.#latest);
  }
}
