import { readFile } from 'node:fs/promises';
import { DroverError, errnoOf, writeFileAtomic, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { crashSettledMs, crashTrialGroupMax, crashTrialsMax } from '../../limits.ts';
import { begin, noCrash, parseRecord, suspectDelayMs, trialMs, type Beginning } from './crash-record.ts';

/** A dial that has to wait for its trial. */
export interface Wait {
  /** Resolves when the sandbox may be dialled. */
  readonly admitted: Promise<void>;
  /** The error for callers during the wait; undefined for a sandbox that is not a suspect, whose wait is short. */
  readonly reason: DroverError | undefined;
  readonly delayMs: number;
  /** Withdraws the dial. */
  readonly cancel: () => void;
}

/**
 * Keeps a peer from crashing the server repeatedly. After several crashes soon after a start, sandboxes are dialled on trial, in groups of
 * 1, 2, 4 and so on, up to a limit. The record names the sandboxes on trial: if the server crashes, they are the suspects of the next one.
 * Suspects are dialled one at a time, after a delay that doubles with each crash. All other sandboxes are dialled without delay.
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
    const previous = await readFile(path, 'utf8').then(parseRecord, (error: unknown) => {
      if (errnoOf(error) === 'ENOENT') return noCrash;
      throw DroverError.from(error);
    });
    const beginning = begin(previous, lastEnd);
    const breaker = new CrashBreaker(path, beginning, clock, logger);
    await breaker.#write(true);
    const { crashes, suspects, allOnTrial } = beginning;
    if (allOnTrial || suspects.size > 0) {
      logger.warn({ crashes, suspects: [...suspects.keys()], allOnTrial }, 'sandboxes are dialled on trial');
    }
    return breaker;
  }

  /** @returns undefined when the sandbox may be dialled now, which is the case unless earlier servers crashed */
  admit(id: SandboxId): Wait | undefined {
    const ended = this.#suspects.get(id);
    // By then every sandbox of the start has been tried. A later sandbox cannot have crashed the earlier servers.
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
      // Not a transient error: a client would retry silently until the next dial.
      'failed-precondition',
      `the control plane ended unexpectedly ${times} while it had a session with this sandbox; it dials again in ${Math.ceil(delayMs / 1000)} s`,
      { hint: 'if you do not trust the sandbox, `drover sandbox contain` works without a session' },
    );
    return { admitted, reason, delayMs, cancel };
  }

  #dueAt(ended: number): number {
    return this.#startedAt + suspectDelayMs(ended);
  }

  /** The sandboxes to dial next: at most `size`, or one suspect. Without any, the time of the next check, unless another arrives first. */
  #next(size: number): readonly SandboxId[] | number {
    const others = [...this.#waiting.keys()].filter((id) => !this.#suspects.has(id));
    if (others.length > 0) return others.slice(0, size);
    const due = [...this.#waiting.keys()]
      .map((id) => ({ id, at: this.#dueAt(this.#suspects.get(id) ?? 1) }))
      .toSorted((a, b) => a.at - b.at)[0];
    if (due === undefined) return Infinity;
    return due.at <= this.#clock.now() ? [due.id] : due.at;
  }

  /** Runs the trials in sequence. Never rejects. */
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

  /** Waits until the time `at`, an arrival or the close. */
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
    // By then every remaining suspect waits for its trial; the others were deleted.
    for (const id of this.#suspects.keys()) if (!this.#waiting.has(id)) this.#suspects.delete(id);
    await this.#write(true);
  }

  /** Writes in order. A failure is logged, and does not affect the sessions. */
  async #write(running: boolean): Promise<void> {
    this.#written = this.#written.then(async () => {
      const suspects = Object.fromEntries(this.#suspects);
      const record = { running, settled: this.#settled, crashes: this.#crashes, trial: this.#trial, suspects };
      try {
        // The record must survive a crash of the process, not of the machine.
        await writeFileAtomic(this.#path, `${JSON.stringify(record)}\n`, { sync: false });
      } catch (error) {
        this.#logger.error({ err: error }, 'the record of crashes could not be written');
      }
    });
    await this.#written;
  }

  /** Records that the server closes: its end is no crash. */
  async close(): Promise<void> {
    this.#life.abort(new DroverError('cancelled', 'the control plane stops'));
    await this.#loops;
    this.#trial = [];
    await this.#write(false);
  }
}
