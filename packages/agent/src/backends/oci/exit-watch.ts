import { existsSync, watch, type FSWatcher } from 'node:fs';
import { join } from 'node:path';
import type { Clock, SandboxId } from '@drover/foundation';
import { exitPollMs } from '../../limits.ts';

interface Watched {
  readonly hasEnded: () => boolean;
  readonly watcher: FSWatcher | undefined;
  readonly waiters: Set<() => void>;
  /** Polled often until then: an event has occurred that usually precedes the end. */
  hurryUntil: number;
}

/** How long to poll often after an event that usually precedes the end. */
const hurryMs = 1_000;
/** The first interval of polling often; it grows. */
const hurriedPollMs = 3;
/** Init writes it just before it ends. */
const exitRecord = 'exit.json';

/**
 * Reports the end of sandboxes. No process of the agent is the parent of init, so no exit status arrives: the agent polls whether the process
 * exists, every second, and every few milliseconds once init has written its exit record or was killed.
 */
export class ExitWatch {
  readonly #clock: Clock;
  readonly #watched = new Map<SandboxId, Watched>();
  /** Sandboxes without a waiter that are to be polled often, and until when. */
  readonly #hurried = new Map<SandboxId, number>();
  #loop: AbortController | undefined;
  /** When all were polled last, not only those that are polled often. */
  #lastRound = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves when `hasEnded` holds. @throws the signal's reason */
  async wait(id: SandboxId, runDirectory: string, hasEnded: () => boolean, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (hasEnded()) return;
    const watched = this.#watched.get(id) ?? this.#add(id, runDirectory, hasEnded);
    await new Promise<void>((resolve, reject) => {
      const done = (): void => {
        signal.removeEventListener('abort', abort);
        resolve();
      };
      const abort = (): void => {
        watched.waiters.delete(done);
        if (watched.waiters.size === 0) this.#remove(id, watched);
        reject(signal.reason as Error);
      };
      watched.waiters.add(done);
      signal.addEventListener('abort', abort, { once: true });
      // The sandbox may have ended just before. Only now, since the first poll of the loop may be its last.
      if (watched.waiters.size === 1) this.#restart();
    });
  }

  /** Polls often for a second: the sandbox is about to end. */
  hurry(id: SandboxId): void {
    const now = this.#clock.now();
    const watched = this.#watched.get(id);
    if (watched === undefined) {
      for (const [other, until] of this.#hurried) if (until < now) this.#hurried.delete(other);
      this.#hurried.set(id, now + hurryMs);
      return;
    }
    watched.hurryUntil = now + hurryMs;
    this.#restart();
  }

  #add(id: SandboxId, runDirectory: string, hasEnded: () => boolean): Watched {
    let watcher: FSWatcher | undefined;
    try {
      watcher = watch(runDirectory, { persistent: false }, (_, name) => {
        if (name === exitRecord) this.hurry(id);
      });
      // The directory was removed, or the host has no more inotify watches: polling continues.
      watcher.on('error', () => watcher?.close());
    } catch {
      // The same.
    }
    // The event that precedes the end may have occurred before the watch. A sandbox that has just begun is polled every second, as all others.
    const late = watcher === undefined || existsSync(join(runDirectory, exitRecord));
    const hurryUntil = Math.max(this.#hurried.get(id) ?? 0, late ? this.#clock.now() + hurryMs : 0);
    this.#hurried.delete(id);
    const watched: Watched = { hasEnded, watcher, waiters: new Set(), hurryUntil };
    this.#watched.set(id, watched);
    return watched;
  }

  #remove(id: SandboxId, watched: Watched): void {
    watched.watcher?.close();
    if (this.#watched.get(id) === watched) this.#watched.delete(id);
    if (this.#watched.size === 0) this.#loop?.abort();
  }

  /** One loop for all sandboxes; restarted when one is to be polled often. */
  #restart(): void {
    this.#loop?.abort();
    const loop = new AbortController();
    this.#loop = loop;
    void this.#run(loop);
  }

  async #run(loop: AbortController): Promise<void> {
    while (!loop.signal.aborted && this.#watched.size > 0) {
      const now = this.#clock.now();
      const everyone = now - this.#lastRound >= 0.9 * exitPollMs;
      if (everyone) this.#lastRound = now;
      for (const [id, watched] of this.#watched) {
        if (!everyone && watched.hurryUntil < now) continue;
        if (!watched.hasEnded()) continue;
        this.#remove(id, watched);
        for (const done of watched.waiters) done();
      }
      const left = Math.max(0, ...this.#watched.values().map(({ hurryUntil }) => hurryUntil - now));
      const nextMs = left === 0 ? exitPollMs : Math.max(hurriedPollMs, (hurryMs - left) / 8);
      // Aborted when another loop has replaced it, or nothing is watched.
      await this.#clock.sleep(nextMs, loop.signal).catch(() => undefined);
    }
    if (this.#loop === loop) this.#loop = undefined;
  }
}
