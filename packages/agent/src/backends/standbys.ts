import { Backoff, Notifier, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { maxRecentCreates, standbyRestMs, standbyRetryCapMs, standbyRetryMs, standbyReviewMs } from '../limits.ts';
import type { Backend, StartRequest } from './backend.ts';
import { override } from './override.ts';
import { standbyRange, standbyTarget, type StandbyRange } from './standby-demand.ts';

/** A backend that can start inits before the sandboxes that use them exist. */
export interface PrestartingBackend extends Backend {
  /**
   * Starts an init in a network, with an empty root: a standby, which waits for a sandbox. It ends with this process, or by `discard`.
   * Undefined: sandboxes need the remaining addresses.
   */
  prestart(signal: AbortSignal): Promise<SandboxId | undefined>;
  /** Makes the sandbox from the standby where that is possible. The standby does not exist afterwards, whatever the outcome. */
  create(request: StartRequest, signal: AbortSignal, standby?: SandboxId): Promise<void>;
  /** Removes a standby that no sandbox uses. Absent: nothing. */
  discard(standby: SandboxId): Promise<void>;
}

export interface StandbysOptions {
  /** For so many the host sets memory aside. */
  readonly most: number;
  readonly clock: Clock;
  readonly logger: Logger;
}

/** The backend with standbys: a create finds most of its work done. The next agent sweeps standbys that this one left. */
export function withStandbys(backend: PrestartingBackend, options: StandbysOptions): Backend {
  const standbys = new Standbys(backend, options);
  return override(backend, {
    create: async (request, signal) => {
      using _start = standbys.beginStart();
      await backend.create(request, signal, standbys.take());
    },
    start: async (request, signal) => {
      using _start = standbys.beginStart();
      await backend.start(request, signal);
    },
    // A sweep removes standbys too, so they are made after it.
    sweep: async (known) => {
      const swept = await backend.sweep(known);
      standbys.fill();
      return swept;
    },
    close: async () => {
      await standbys.close();
      await backend.close();
    },
  });
}

/**
 * Keeps standbys ready, as many as recent bursts used (standby-demand.ts). They are made one at a time, and only while no sandbox is being
 * started: a start would lack the CPU.
 */
export class Standbys {
  readonly #backend: PrestartingBackend;
  readonly #options: StandbysOptions;
  readonly #range: StandbyRange;
  readonly #ready: SandboxId[] = [];
  readonly #openedAt: number;
  /** When the newest creates began, oldest first. */
  readonly #creates: number[] = [];
  #startsUnderWay = 0;
  #lastStart = Number.NEGATIVE_INFINITY;
  readonly #retry = new Backoff({ baseMs: standbyRetryMs, capMs: standbyRetryCapMs });
  readonly #changed: Notifier;
  readonly #closing = new AbortController();
  #filling: Promise<void> | undefined;

  constructor(backend: PrestartingBackend, options: StandbysOptions) {
    this.#backend = backend;
    this.#options = options;
    this.#range = standbyRange(options.most);
    this.#openedAt = options.clock.now();
    this.#changed = new Notifier(options.clock);
  }

  /** A standby that the caller owns from now on; undefined: none is ready. */
  take(): SandboxId | undefined {
    this.#creates.push(this.#options.clock.now());
    if (this.#creates.length > maxRecentCreates) this.#creates.shift();
    this.#changed.notify();
    return this.#ready.shift();
  }

  /** A start is under way until the result is disposed of. */
  beginStart(): Disposable {
    this.#startsUnderWay++;
    return {
      [Symbol.dispose]: () => {
        this.#startsUnderWay--;
        this.#lastStart = this.#options.clock.now();
      },
    };
  }

  /** Makes standbys from now on, in the background. */
  fill(): void {
    this.#filling ??= this.#fill();
  }

  /** Discards all. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#filling;
    await Promise.all(this.#ready.splice(0).map(async (standby) => await this.#discard(standby)));
  }

  async #fill(): Promise<void> {
    const { clock, logger } = this.#options;
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await this.#step(signal);
      } catch (error) {
        if (signal.aborted) return;
        const retryMs = standbyRestMs + this.#retry.nextMs();
        logger.warn({ err: error, retryMs }, 'a standby could not be made');
        await clock.sleep(retryMs, signal).catch(() => undefined);
      }
    }
  }

  /** Makes a standby, discards one, or waits until that may be necessary. */
  async #step(signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    const now = clock.now();
    const missing = standbyTarget(this.#creates, this.#openedAt, now, this.#range) - this.#ready.length;
    const surplus = missing < 0 ? this.#ready.shift() : undefined;
    const restMs = this.#startsUnderWay > 0 ? standbyRestMs : this.#lastStart + standbyRestMs - now;
    if (surplus !== undefined) await this.#discard(surplus);
    else if (missing === 0) await this.#changed.wait(signal, standbyReviewMs);
    else if (restMs > 0) await clock.sleep(restMs, signal);
    else {
      const standby = await this.#backend.prestart(signal);
      this.#retry.reset();
      if (standby === undefined) await this.#changed.wait(signal, standbyReviewMs);
      else this.#ready.push(standby);
    }
  }

  async #discard(standby: SandboxId): Promise<void> {
    try {
      await this.#backend.discard(standby);
    } catch (error) {
      // The next start of the agent sweeps it.
      this.#options.logger.warn({ err: error, standby }, 'a standby could not be removed');
    }
  }
}
