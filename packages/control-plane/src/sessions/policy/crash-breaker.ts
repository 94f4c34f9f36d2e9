import { readFile } from 'node:fs/promises';
import { DroverError, errnoOf, writeFileAtomic, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { crashSettledMs, crashTrialGroupMax, crashTrialsMax } from '../../limits.ts';
import { begin, noCrash, parseRecord, suspectDelayMs, trialMs, type Beginning } from './crash-record.ts';

/** A dial that has to wait for its trial. */
export interface Wait {
  /** Resolves when the sandbox may be dialled. */
  readonly admitted: Promise<void>;
  /** The error for callers meanwhile; undefined for a sandbox that is no suspect, which is dialled soon. */
  readonly reason: DroverError | undefined;
  readonly delayMs: number;
  /** The dial is not wanted any more. */
  readonly cancel: () => void;
}

/**
 * Keeps one peer from ending the server again and again, by whatever defect. After several crashes soon after a start, sandboxes are
 * dialled on trial, in groups of 1, 2, 4 and so on, up to a limit. The record says who is on trial, so that the next server knows whom to suspect:
 * suspects are dialled after a delay that doubles with each server that they end, one at a time, and everything else without delay.
 */
export class CrashBreaker {
  readonly #path: string;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #crashes: number;
  readonly #suspects: Map<SandboxId, number>;
  readonly #startedAt: number;
  readonly #life = new AbortController();
  /** In the order of arrival. */
  readonly #waiting = new Map<SandboxId, () => void>();
  #allOnTrial: boolean;
  #settled = false;
  #trial: readonly SandboxId[] = [];
  #arrived: (() => void) | undefined;
  #written: Promise<void> = Promise.resolve();
  readonly #loops: Promise<unknown>;

  private constructor(path: string, { crashes, suspects, allOnTrial }: Beginning, clock: Clock, logger: Logger) {
    this.#path = path;
    this.#clock = clock;
    this.#logger = logger;
    this.#crashes = crashes;
    this.#suspects = new Map(suspects);
    this.#allOnTrial = allOnTrial;
    this.#startedAt = clock.now();
    this.#loops = Promise.all([this.#trials(), this.#settle()]);
  }

  /**
   * @param path the record, in the data directory
   * @param lastEnd see `begin`
   * @throws {DroverError} when it cannot be read or written
   */
  static async open(path: string, lastEnd: string, clock: Clock, logger: Logger): Promise<CrashBreaker> {
    const left = await readFile(path, 'utf8').then(parseRecord, (error: unknown) => {
      if (errnoOf(error) === 'ENOENT') return noCrash;
      throw DroverError.from(error);
    });
    const beginning = begin(left, lastEnd);
    const breaker = new CrashBreaker(path, beginning, clock, logger);
    await breaker.#write(true);
    const { crashes, suspects, allOnTrial } = beginning;
    if (allOnTrial || suspects.size > 0) {
      logger.warn({ crashes, suspects: [...suspects.keys()], allOnTrial }, 'sandboxes are dialled on trial');
    }
    return breaker;
  }

  /** Undefined when the sandbox may be dialled now, as it may unless the servers before this one crashed. */
  admit(id: SandboxId): Wait | undefined {
    const ended = this.#suspects.get(id);
    // What was there at the start has been tried by then: what comes later cannot have ended the servers before this one.
    const triedAt = this.#startedAt + trialMs(this.#crashes) * crashTrialsMax;
    if (this.#allOnTrial && this.#waiting.size === 0 && this.#trial.length === 0 && this.#clock.now() >= triedAt) this.#allOnTrial = false;
    if ((!this.#allOnTrial && ended === undefined) || this.#life.signal.aborted) return undefined;
    const { promise: admitted, resolve } = Promise.withResolvers<void>();
    this.#waiting.set(id, resolve);
    this.#arrived?.();
    const cancel = (): void => void (this.#waiting.get(id) === resolve && this.#waiting.delete(id));
    if (ended === undefined) return { admitted, reason: undefined, delayMs: 0, cancel };
    const delayMs = Math.max(0, this.#dueAt(ended) - this.#clock.now());
    const times = ended === 1 ? 'once' : `${ended} times`;
    const reason = new DroverError(
      // Not a transient error: a client that retries until the next dial would wait without a word.
      'failed-precondition',
      `the control plane ended unexpectedly ${times} while it had a session with this sandbox; it dials again in ${Math.ceil(delayMs / 1000)} s`,
      { hint: 'if you do not trust the sandbox, `drover sandbox contain` works without a session' },
    );
    return { admitted, reason, delayMs, cancel };
  }

  #dueAt(ended: number): number {
    return this.#startedAt + suspectDelayMs(ended);
  }

  /** Those to be dialled next, at most `size`; a suspect alone. Otherwise the time of the next check, unless one arrives before. */
  #next(size: number): readonly SandboxId[] | number {
    const others = [...this.#waiting.keys()].filter((id) => !this.#suspects.has(id));
    if (others.length > 0) return others.slice(0, size);
    const due = [...this.#waiting.keys()]
      .map((id) => ({ id, at: this.#dueAt(this.#suspects.get(id) ?? 1) }))
      .toSorted((a, b) => a.at - b.at)[0];
    if (due === undefined) return Infinity;
    return due.at <= this.#clock.now() ? [due.id] : due.at;
  }

  /** One trial after the other. Never rejects. */
  async #trials(): Promise<void> {
    if (!this.#allOnTrial && this.#suspects.size === 0) return;
    const { signal } = this.#life;
    const lastsMs = trialMs(this.#crashes);
    let size = 1;
    while (!signal.aborted) {
      const group = this.#next(size);
      if (typeof group === 'number') {
        await this.#until(group);
        continue;
      }
      this.#trial = group;
      await this.#write(true);
      for (const id of group) {
        this.#waiting.get(id)?.();
        this.#waiting.delete(id);
      }
      await this.#clock.sleep(lastsMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      for (const id of group) this.#suspects.delete(id);
      this.#trial = [];
      await this.#write(true);
      size = Math.min(2 * size, crashTrialGroupMax);
    }
  }

  /** Until a time, an arrival or the end. */
  async #until(at: number): Promise<void> {
    const arrived = new AbortController();
    this.#arrived = () => arrived.abort();
    const ms = Math.min(at - this.#clock.now(), crashSettledMs);
    await this.#clock.sleep(ms, AbortSignal.any([arrived.signal, this.#life.signal])).catch(() => undefined);
    this.#arrived = undefined;
  }

  async #settle(): Promise<void> {
    try {
      await this.#clock.sleep(crashSettledMs, this.#life.signal);
    } catch {
      return; // closed
    }
    this.#settled = true;
    // Every suspect that there still is has come up for its trial by then: the others were deleted.
    for (const id of this.#suspects.keys()) if (!this.#waiting.has(id)) this.#suspects.delete(id);
    await this.#write(true);
  }

  /** In order. A record that cannot be written is logged: the sessions matter more. */
  async #write(running: boolean): Promise<void> {
    this.#written = this.#written.then(async () => {
      const suspects = Object.fromEntries(this.#suspects);
      const record = { running, settled: this.#settled, crashes: this.#crashes, trial: this.#trial, suspects };
      try {
        // It has to outlive the process, not the machine.
        await writeFileAtomic(this.#path, `${JSON.stringify(record)}\n`, { sync: false });
      } catch (error) {
        this.#logger.error({ err: error }, 'the record of crashes could not be written');
      }
    });
    await this.#written;
  }

  /** The server closes: its end is no crash. */
  async close(): Promise<void> {
    this.#life.abort(new DroverError('cancelled', 'the control plane stops'));
    await this.#loops;
    this.#trial = [];
    await this.#write(false);
  }
}
