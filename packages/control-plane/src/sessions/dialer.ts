import { X509Certificate } from 'node:crypto';
import type { SandboxId } from '@drover/foundation';
import { lostRedialMs, concurrentLostRedials } from '../limits.ts';
import { Dial, none, type DialContext, type DialerOptions, type DialView, type Memory } from './dial.ts';
import type { InitClient, SessionStatus } from './sessions.ts';
import { isToRun } from './target.ts';

export interface DialerStats {
  readonly connecting: number;
  readonly connected: number;
  /** Frames dropped for an unknown id, since the start (I-33). */
  readonly droppedFrames: number;
}

/** Holds one session with each sandbox that it was told to dial (spec 2.6). It holds no policy: whoever answers is talked to (I-1). */
export class Dialer {
  readonly #options: DialerOptions;
  readonly #ca: X509Certificate;
  readonly #dials = new Map<SandboxId, Dial>();
  readonly #memories = new Map<SandboxId, Memory>();
  readonly #closings = new Set<Promise<void>>();
  /** Redials of lost sessions under way. */
  readonly #redials = new Set<Dial>();
  readonly #life = new AbortController();
  #droppedFrames = 0;
  #closed = false;

  /** @throws when the CA's certificate cannot be read; who makes a dialer has looked (I-28) */
  constructor(options: DialerOptions) {
    this.#options = options;
    this.#ca = new X509Certificate(options.caPem);
  }

  /** Returns at once (I-21); nothing while one is in flight or established (I-22). One that is being ended is followed by it. */
  dial(id: SandboxId): void {
    if (this.#closed) return;
    const standing = this.#dials.get(id);
    if (standing === undefined || standing.over) this.#begin(id);
    else if (standing.ending) standing.next = () => this.dial(id);
  }

  #begin(id: SandboxId, slow = false): void {
    const dial = new Dial(id, this.#contextOf(id), slow);
    this.#dials.set(id, dial);
    if (slow) this.#redials.add(dial);
    void dial.gone.then(() => {
      this.#redials.delete(dial);
      if (this.#dials.get(id) !== dial) return;
      // Keep the error of a failed dial for the status call. A dial that ended normally leaves none.
      if (dial.failure === undefined) this.#dials.delete(id);
      // I-25: a redial would lose another descriptor.
      else if (!dial.leaking) void this.#redialLost(id, dial);
    });
  }

  /** Redials a lost session for as long as its sandbox runs: slowly, and a bounded number at a time. Never rejects. */
  async #redialLost(id: SandboxId, lost: Dial): Promise<void> {
    const { clock, store, hub, logger, random = Math.random } = this.#options;
    for (;;) {
      try {
        await clock.sleep(lostRedialMs * (0.5 + random()), this.#life.signal);
      } catch {
        return; // closed
      }
      try {
        const row = await store.sandboxes.get(id);
        // A call needed it and began another dial, or it was ended.
        if (this.#dials.get(id) !== lost || this.#closed) return;
        if (!isToRun(row)) return await this.end(id);
        if (row.hostId === undefined || !hub.isConnected(row.hostId) || this.#redials.size >= concurrentLostRedials) continue;
        return this.#begin(id, true);
      } catch (error) {
        logger.warn({ sandbox: id, err: error }, 'a sandbox could not be read to redial its session');
      }
    }
  }

  /** An intended end (I-24): from now on there is no session. Resolves when nothing of it is left. */
  async end(id: SandboxId): Promise<void> {
    const dial = this.#dials.get(id);
    if (dial === undefined) return;
    dial.end();
    await dial.done;
    if (this.#dials.get(id) === dial) this.#dials.delete(id);
    const { next } = dial;
    dial.next = undefined;
    next?.();
  }

  /** An intended end, of a sandbox that is no more or will be another when it starts again. */
  forget(id: SandboxId): void {
    this.#memories.delete(id);
    void this.end(id);
  }

  /** Something changed: a loop that waits looks again now. */
  wake(id: SandboxId): void {
    this.#dials.get(id)?.wake();
  }

  status(id: SandboxId): SessionStatus {
    return this.#dials.get(id)?.status ?? none;
  }

  client(id: SandboxId): InitClient | undefined {
    return this.#dials.get(id)?.client;
  }

  /** The dial that stands, or failed last; undefined when none did. */
  get(id: SandboxId): DialView | undefined {
    return this.#dials.get(id);
  }

  /** The sandboxes whose peers are trusted now, and as what. */
  *trusted(): Generator<readonly [SandboxId, string]> {
    for (const [id, { trustedAs }] of this.#dials) if (trustedAs !== undefined) yield [id, trustedAs];
  }

  stats(): DialerStats {
    const states = [...this.#dials.values()].map(({ status }) => status.state);
    return {
      connecting: states.filter((state) => state === 'connecting').length,
      connected: states.filter((state) => state === 'connected').length,
      droppedFrames: this.#droppedFrames,
    };
  }

  /** Ends every session; nothing is dialled after it. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#life.abort();
    await Promise.all([...this.#dials.keys()].map(async (id) => await this.end(id)));
    await Promise.all(this.#closings);
  }

  #contextOf(id: SandboxId): DialContext {
    let memory = this.#memories.get(id);
    if (memory === undefined) {
      this.#memories.set(
        id,
        (memory = { completedStart: 0, readyAsked: 0, interruptedPlans: 0, start: 0, host: undefined, closeFailures: 0 }),
      );
    }
    return {
      ...this.#options,
      caCertificate: this.#ca,
      memory,
      dropped: () => {
        this.#droppedFrames++;
      },
      inBackground: (closing) => {
        this.#closings.add(closing);
        void closing.finally(() => this.#closings.delete(closing));
      },
    };
  }
}
