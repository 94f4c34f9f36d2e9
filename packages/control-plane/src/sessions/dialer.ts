import { X509Certificate } from 'node:crypto';
import type { SandboxId } from '@drover/foundation';
import { concurrentLostRedials, lostRedialMs } from '../limits.ts';
import type { InitClient } from './connection/index.ts';
import { Dial, type DialContext, type DialerOptions, type DialView } from './dial.ts';
import { isToRun, StartHistory } from './policy/index.ts';
import { noSession, type SessionStatus } from './sessions.ts';

export interface DialerStats {
  readonly connecting: number;
  readonly connected: number;
  /** Frames dropped for an unknown id, since the start (I-33). */
  readonly droppedFrames: number;
}

/** Holds at most one dial for each sandbox (spec 2.6), and opens a session with any peer (I-1). */
export class Dialer {
  readonly #options: DialerOptions;
  readonly #ca: X509Certificate;
  readonly #dials = new Map<SandboxId, Dial>();
  readonly #histories = new Map<SandboxId, StartHistory>();
  readonly #closings = new Set<Promise<void>>();
  /** Redials of lost sessions under way. */
  readonly #redials = new Set<Dial>();
  readonly #life = new AbortController();
  #droppedFrames = 0;

  /** @throws when the CA's certificate cannot be read (I-28) */
  constructor(options: DialerOptions) {
    this.#options = options;
    this.#ca = new X509Certificate(options.caPem);
  }

  /** Returns immediately (I-21). Has no effect while a dial is in flight or its session is open (I-22). Follows a dial that is ending. */
  dial(id: SandboxId): void {
    if (this.#life.signal.aborted) return;
    const current = this.#dials.get(id);
    if (current === undefined || current.ended) this.#begin(id);
    else if (current.ending) current.next = () => this.dial(id);
  }

  #begin(id: SandboxId, slow = false): void {
    const dial = new Dial(id, this.#contextOf(id), slow);
    this.#dials.set(id, dial);
    if (slow) this.#redials.add(dial);
    void dial.closed.then(() => {
      this.#redials.delete(dial);
      if (this.#dials.get(id) !== dial) return;
      // Keep the error of a failed dial for the status call. A dial that ended normally leaves none.
      if (dial.failure === undefined) this.#dials.delete(id);
      // I-25: a redial would lose another descriptor.
      else if (dial.failure.reason !== 'fd-leak-ceiling') void this.#redialLost(id, dial);
    });
  }

  /** Redials a lost session while its sandbox runs: slowly, and a bounded number at a time. Never rejects. */
  async #redialLost(id: SandboxId, lost: Dial): Promise<void> {
    const { clock, store, hub, logger, random = Math.random } = this.#options;
    const { signal } = this.#life;
    for (;;) {
      await clock.sleep(lostRedialMs * (0.5 + random()), signal).catch(() => undefined);
      try {
        const row = signal.aborted ? undefined : await store.sandboxes.get(id);
        // A caller has begun another dial, or this one was ended.
        if (this.#dials.get(id) !== lost || signal.aborted) return;
        if (!isToRun(row)) return await this.end(id);
        if (row.hostId === undefined || !hub.isConnected(row.hostId) || this.#redials.size >= concurrentLostRedials) continue;
        return this.#begin(id, true);
      } catch (error) {
        logger.warn({ sandbox: id, err: error }, 'a sandbox could not be read to redial its session');
      }
    }
  }

  /** Ends the session as intended (I-24). Resolves when its dial has ended. */
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

  /** Ends the session, and drops the history of its starts: the copy of the sandbox is deleted. */
  forget(id: SandboxId): void {
    this.#histories.delete(id);
    void this.end(id);
  }

  /** Ends the pause of a waiting dial. */
  wake(id: SandboxId): void {
    this.#dials.get(id)?.wake();
  }

  status(id: SandboxId): SessionStatus {
    return this.#dials.get(id)?.status ?? noSession;
  }

  client(id: SandboxId): InitClient | undefined {
    return this.#dials.get(id)?.client;
  }

  /** The present dial, or the last one if it failed. */
  get(id: SandboxId): DialView | undefined {
    return this.#dials.get(id);
  }

  /** The sandboxes whose peers are trusted now, with the thumbprints. */
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

  /** Ends every session; later dials have no effect. */
  async close(): Promise<void> {
    this.#life.abort();
    await Promise.all([...this.#dials.keys()].map(async (id) => await this.end(id)));
    await Promise.all(this.#closings);
  }

  #contextOf(id: SandboxId): DialContext {
    const history = this.#histories.get(id) ?? new StartHistory();
    this.#histories.set(id, history);
    return {
      ...this.#options,
      caCertificate: this.#ca,
      history,
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
