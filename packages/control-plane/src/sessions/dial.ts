import type { X509Certificate } from 'node:crypto';
import { abortable, after, Backoff, canonicalCommonName, clip, DroverError, hasCode, type SandboxId } from '@drover/foundation';
import type { Names } from '@drover/pki';
import type { init } from '@drover/protocol';
import type { StepFailure } from '../events/index.ts';
import type { Hub } from '../hub/index.ts';
import {
  closeFailuresMax,
  closeGraceMs,
  dialAttemptMs,
  dialBackoffBaseMs,
  dialBackoffCapMs,
  dialTotalMs,
  endReportMs,
  maxInitErrorLength,
  sessionMessagesPerSecond,
} from '../limits.ts';
import { startOf, type SandboxRow } from '../model/index.ts';
import { CloseFailed, judge, type Connection, type Connector, type InitClient, type PeerVerdict } from './connection/index.ts';
import { declareStartFailed } from './failed-start.ts';
import {
  afterFailure,
  afterSession,
  DialFailed,
  isToRun,
  mayHaveBegun,
  mustBeReachable,
  type ConnectionEnd,
  type CrashBreaker,
  type Reachable,
  type StartHistory,
} from './policy/index.ts';
import type { SessionContext } from './context.ts';
import { Session } from './session.ts';
import { noSession, type SessionStatus } from './sessions.ts';

export interface DialerOptions extends SessionContext {
  readonly hub: Pick<Hub, 'isConnected'>;
  readonly connect: Connector;
  readonly names: Names;
  readonly caPem: string;
  /** Delays dials after a crash of the server; absent: none. */
  readonly breaker?: Pick<CrashBreaker, 'admit'> | undefined;
  /** The state of the sandbox's session changed. */
  readonly changed: (id: SandboxId) => void;
}

export interface DialContext extends DialerOptions {
  readonly caCertificate: X509Certificate;
  readonly history: StartHistory;
  /** A frame with an unknown id was dropped (I-33). */
  readonly dropped: () => void;
  /** Registers the close of a connection that continues in the background. `closing` never rejects. */
  readonly inBackground: (closing: Promise<void>) => void;
}

export interface DialView {
  readonly status: SessionStatus;
  readonly client: InitClient | undefined;
  /** The thumbprint under which its peer is trusted now. */
  readonly trustedAs: string | undefined;
  /** The loop has ended. */
  readonly ended: boolean;
  /** Why the loop ended unexpectedly, without a session. */
  readonly failure: DialFailed | undefined;
  /** Why the dial waits after a crash of the server. */
  readonly delayed: DroverError | undefined;
  /** The start of the sandbox that was dialled last. */
  readonly startCount: number;
}

/** The dial of one sandbox: one loop, from the first attempt to the intended end of its session (I-22 to I-24). */
export class Dial implements DialView {
  readonly #id: SandboxId;
  /** Resolves when its loop has ended. */
  readonly done: Promise<void>;
  /** Resolves when its connections are closed too. */
  readonly closed: Promise<void>;
  readonly #context: DialContext;
  readonly #ending = new AbortController();
  readonly #backoff: Backoff;
  #client: InitClient | undefined;
  #session: Session | undefined;
  #status: SessionStatus;
  #failure: DialFailed | undefined;
  #delayed: DroverError | undefined;
  #startCount = 0;
  #ended = false;
  /** The close of the last connection, after the end of the sandbox. */
  #closing: Promise<void> | undefined;
  #wake: (() => void) | undefined;
  /** Called when this dial has ended: begins the dial that was requested meanwhile. */
  next: (() => void) | undefined;
  /** This dial redials a lost session: it makes one attempt, and publishes only its success. */
  #slow: boolean;

  constructor(id: SandboxId, context: DialContext, slow = false) {
    this.#id = id;
    this.#context = context;
    this.#slow = slow;
    const { random } = context;
    this.#backoff = new Backoff({ baseMs: dialBackoffBaseMs, capMs: dialBackoffCapMs, ...(random === undefined ? {} : { random }) });
    this.#status = { state: 'connecting', since: context.clock.now(), attempts: 0, lastError: '' };
    this.done = this.#run();
    this.closed = this.done.then(async () => await this.#closing);
  }

  get client(): InitClient | undefined {
    return this.ending ? undefined : this.#client;
  }

  get trustedAs(): string | undefined {
    return this.ending ? undefined : this.#session?.trustedAs;
  }

  get status(): SessionStatus {
    return this.ending ? noSession : this.#status;
  }

  get ending(): boolean {
    return this.#ending.signal.aborted;
  }

  get ended(): boolean {
    return this.#ended;
  }

  get failure(): DialFailed | undefined {
    return this.#failure;
  }

  get delayed(): DroverError | undefined {
    return this.#delayed;
  }

  get startCount(): number {
    return this.#startCount;
  }

  wake(): void {
    this.#wake?.();
  }

  end(): void {
    this.next = undefined;
    this.#ending.abort(new DroverError('cancelled', 'the session was closed'));
    this.#context.changed(this.#id);
  }

  /** Never rejects (I-21); an error here affects no other dial (I-26). */
  async #run(): Promise<void> {
    try {
      await this.#loop();
      this.#set('none', '');
    } catch (thrown) {
      if (this.ending) this.#set('none', '');
      else this.#failed(thrown);
    } finally {
      this.#ended = true;
      this.#client = undefined;
      this.#context.changed(this.#id);
    }
  }

  #failed(thrown: unknown): void {
    const { journal, logger } = this.#context;
    const message = thrown instanceof Error ? thrown.message : String(thrown);
    const unexpected = new DialFailed('internal', `the dial of the sandbox failed: ${message}`, 'see the log of the control plane', thrown);
    const error = thrown instanceof DialFailed ? thrown : unexpected;
    const data = { attempts: this.#status.attempts, reason: error.reason, message: error.message };
    this.#failure = error;
    this.#set('broken', error.message);
    if (this.#slow) return logger.info({ sandbox: this.#id, ...data, err: error }, 'a lost session could not be redialled');
    logger.warn({ sandbox: this.#id, ...data, err: error }, 'SessionFailed');
    journal.publish({ kind: 'session', type: 'SessionFailed', subject: this.#id, data });
  }

  /** Dials, and redials after each break, until the sandbox has ended. @throws {DialFailed} */
  async #loop(): Promise<void> {
    const { store, journal, logger, history } = this.#context;
    for (;;) {
      await this.#admitted();
      const end = await this.#dial();
      const ended = end === 'sandbox-ended';
      const row = ended ? await this.#hostReport() : await store.sandboxes.get(this.#id);
      this.#ending.signal.throwIfAborted();
      if (ended && isToRun(row) && startOf(row) === this.#startCount) history.report({ kind: 'interrupted', start: this.#startCount });
      const next = afterSession(history.state, row, this.#startCount, end);
      if (next === 'done' || row === undefined) return;
      if (next === 'redial-now') continue;
      const message = ended ? 'its init reported the end of the main process, but its host reports that it runs' : this.#status.lastError;
      logger.warn({ sandbox: this.#id, reason: message }, 'SessionBroken');
      journal.publish({ kind: 'session', type: 'SessionBroken', subject: this.#id, data: { message } });
      if (next === 'fail-start') await this.#failInterrupted(row, message);
      await this.#pause(this.#backoff.nextMs());
    }
  }

  /** Waits until the breaker admits the dial. The wait does not count as an attempt and cannot fail the start. */
  async #admitted(): Promise<void> {
    const { breaker, journal, logger } = this.#context;
    const wait = breaker?.admit(this.#id);
    if (wait === undefined) return;
    const { admitted, reason, delayMs, cancel } = wait;
    if (reason !== undefined) {
      this.#delayed = reason;
      this.#set('broken', reason.message);
      logger.warn({ sandbox: this.#id, delayMs }, 'SessionDelayed');
      journal.publish({ kind: 'session', type: 'SessionDelayed', subject: this.#id, data: { delayMs, message: reason.message } });
    }
    try {
      await abortable(admitted, this.#ending.signal);
    } finally {
      cancel();
      this.#delayed = undefined;
    }
  }

  /**
   * The host decides whether the sandbox has ended: an init that falsely reports the end of its main process is redialled (I-2).
   * @returns the row once the host has reported, or after `endReportMs`; undefined if the host is not connected: its reconnect begins
   *   another dial
   */
  async #hostReport(): Promise<SandboxRow | undefined> {
    const { store, hub, clock } = this.#context;
    this.#set('none', '');
    const until = clock.now() + endReportMs;
    for (;;) {
      // Before the read: a report that arrives during it ends the pause.
      const woken = this.#wakeable();
      const row = await store.sandboxes.get(this.#id);
      const left = until - clock.now();
      if (!isToRun(row) || startOf(row) !== this.#startCount || left <= 0) return row;
      if (row.hostId === undefined || !hub.isConnected(row.hostId)) return undefined;
      await this.#pause(left, woken);
    }
  }

  /** One dial (I-23): attempts until one establishes a session. @returns how that session ended @throws {DialFailed} */
  async #dial(): Promise<ConnectionEnd> {
    const { clock, logger, store, hub, history } = this.#context;
    const signal = this.#ending.signal;
    let until = clock.now() + dialTotalMs;
    let runs = false;
    this.#status = { ...this.#status, attempts: 0 };
    for (;;) {
      let established = false;
      let row: Reachable | undefined;
      try {
        row = mustBeReachable(await store.sandboxes.get(this.#id), (hostId) => hub.isConnected(hostId));
        signal.throwIfAborted();
        // L-23: the host may take any time to start the sandbox. The deadline for init is counted from when the sandbox runs.
        if (!runs && row.observed === 'running') {
          runs = true;
          until = clock.now() + dialTotalMs;
        }
        return await this.#attempt(row, Math.min(dialAttemptMs, until - clock.now()), () => {
          established = true;
          this.#slow = false;
        });
      } catch (thrown) {
        signal.throwIfAborted();
        if (thrown instanceof DialFailed) throw thrown;
        const message = clip(thrown instanceof Error ? thrown.message : String(thrown), maxInitErrorLength);
        this.#set(established ? 'broken' : 'connecting', message);
        // After an established session, `#loop` draws the delay once it has decided to redial.
        const delayMs = established ? 0 : this.#backoff.nextMs();
        const next = afterFailure(history.state, { established, slow: this.#slow }, until - clock.now(), delayMs);
        if (next === 'broken') return 'broken';
        if (next === 'leaking') {
          throw new DialFailed(
            'fd-leak-ceiling',
            `${closeFailuresMax} connections in a row could not be closed: ${message}`,
            'see the log of the control plane; its restart closes them',
            thrown,
          );
        }
        logger.info({ sandbox: this.#id, attempt: this.#status.attempts, reason: message }, 'a session attempt failed');
        if (next === 'give-up') await this.#giveUp(row, message, thrown);
        await this.#pause(delayMs);
      }
    }
  }

  /** @throws {DialFailed} always; the start has failed too, if its command cannot have begun */
  async #giveUp(row: Reachable | undefined, message: string, cause: unknown): Promise<never> {
    if (row !== undefined && (await this.#neverBegan(row))) {
      if (this.#context.history.state.interruptedPlans > 0) await this.#failInterrupted(row, message);
      // I-30: a start that never began must not look as if it ran.
      const reason = `its command was never started, since its init could not be reached for ${dialTotalMs / 1000} s: ${message}`;
      await this.#declareFailed(row, reason, { reason: 'transport-error', message: reason });
    }
    throw new DialFailed(
      'unreachable',
      `no session with the sandbox could be established: ${message}`,
      '`drover sandbox get` shows its state',
      cause,
    );
  }

  /** Whether the sandbox runs and no session has requested the start of its command. False if that is uncertain: the command may run. */
  async #neverBegan(row: Reachable): Promise<boolean> {
    const { history, worldview, logger } = this.#context;
    const start = startOf(row);
    if (row.observed !== 'running' || mayHaveBegun(history.state, start)) return false;
    try {
      const { init } = await worldview.get(this.#id);
      history.report({ kind: 'recalled', start, init });
      return !mayHaveBegun(history.state, start);
    } catch (error) {
      logger.error({ sandbox: this.#id, err: error }, 'the view of a sandbox that does not respond could not be read');
      return false;
    }
  }

  /** Fails a start whose sessions broke repeatedly within the plan (I-30). @throws {DialFailed} */
  async #failInterrupted(row: SandboxRow, message: string): Promise<never> {
    this.#context.history.report({ kind: 'settled' });
    await this.#declareFailed(row, `the session broke repeatedly: ${message}`, undefined);
    throw new DialFailed(
      'init-interrupted',
      `the session broke repeatedly before the sandbox was prepared: ${message}`,
      'see `drover sandbox explain`',
    );
  }

  async #declareFailed(row: SandboxRow, message: string, unbegun: StepFailure | undefined): Promise<void> {
    try {
      await declareStartFailed(this.#context, { row, startCount: startOf(row) }, message, unbegun, this.#ending.signal);
    } catch (error) {
      // Another start has begun, and has its own dial.
      if (!hasCode(error, 'conflict')) throw error;
    }
  }

  /** Runs one connection until it ends. @throws the error that broke it, before or after its session was established */
  async #attempt(row: Reachable, withinMs: number, onEstablished: () => void): Promise<ConnectionEnd> {
    const { clock, connect, history } = this.#context;
    this.#startCount = startOf(row);
    this.#began(row);
    const deadline = new AbortController();
    const stopTimer = after(withinMs, clock, () => deadline.abort(new DroverError('timed-out', 'the sandbox did not respond in time')));
    const signal = AbortSignal.any([this.#ending.signal, deadline.signal]);
    let connection: Connection | undefined;
    let ended = false;
    let settledAt: number | undefined;
    try {
      connection = await connect({ id: this.#id, hostId: row.hostId }, signal);
      const verdict = this.#judge(row, connection);
      connection.throttled.addEventListener('abort', () => this.#publishThrottled(), { once: true });
      // Callers may use it immediately: init delays a call on the main process until its start.
      this.#client = connection.client;
      this.#set('connected', '');
      const hooks = {
        greeted: (ack: init.HelloAck): void => {
          stopTimer();
          onEstablished();
          this.#publishConnected(row, verdict, ack);
        },
        settled: (): void => void (settledAt = clock.now()),
        dropped: this.#context.dropped,
      };
      this.#session = new Session(this.#context, { row, connection, verdict, history, ...hooks }, signal);
      const end = await this.#session.run();
      if (!end.mainExited) throw new Error(end.reason);
      ended = true;
      return 'sandbox-ended';
    } catch (thrown) {
      if (thrown instanceof CloseFailed) history.report({ kind: 'closed', ok: false });
      throw deadline.signal.aborted ? deadline.signal.reason : thrown;
    } finally {
      stopTimer();
      this.#client = undefined;
      this.#session = undefined;
      // Not for a peer that breaks its session soon after the plan: it is redialled at increasing intervals.
      if (settledAt !== undefined && clock.now() - settledAt >= dialBackoffCapMs) this.#backoff.reset();
      // I-26: a dial leaves nothing open, except calls that still read the last output of the main process.
      if (connection !== undefined) {
        if (ended) this.#context.inBackground((this.#closing = this.#closeLater(connection)));
        else await this.#close(connection);
      }
    }
  }

  #began(row: Reachable): void {
    const { journal, history } = this.#context;
    const attempt = this.#status.attempts + 1;
    this.#status = { ...this.#status, state: 'connecting', attempts: attempt };
    history.report({ kind: 'attempted', start: this.#startCount, hostId: row.hostId });
    if (!this.#slow) journal.publish({ kind: 'session', type: 'SessionConnecting', subject: this.#id, data: { attempt } });
  }

  #judge({ project, name }: SandboxRow, { shown }: Connection): PeerVerdict {
    const { names, caCertificate, clock } = this.#context;
    return judge(shown, { id: this.#id, commonName: canonicalCommonName(project, name), names, ca: caCertificate, now: clock.now() });
  }

  #publishThrottled(): void {
    const { journal, logger } = this.#context;
    const message = `it sends more than ${sessionMessagesPerSecond} messages a second, and is read no faster`;
    logger.warn({ sandbox: this.#id }, 'SessionThrottled');
    journal.publish({ kind: 'session', type: 'SessionThrottled', subject: this.#id, data: { message } });
  }

  #publishConnected(row: SandboxRow, { commonName, thumbprint }: PeerVerdict, { bootId }: init.HelloAck): void {
    const { journal, logger } = this.#context;
    const { attempts } = this.#status;
    const data = { attempts, peerCommonName: clip(commonName), thumbprint, address: row.address, bootId: clip(bootId) };
    logger.info({ sandbox: this.#id, ...data }, 'SessionConnected');
    journal.publish({ kind: 'session', type: 'SessionConnected', subject: this.#id, data });
  }

  /** Counts consecutive failures (I-25). Never rejects. */
  async #close(connection: Connection): Promise<void> {
    const { history, logger } = this.#context;
    try {
      await connection.close();
      history.report({ kind: 'closed', ok: true });
    } catch (error) {
      history.report({ kind: 'closed', ok: false });
      const inARow = history.state.closeFailures;
      logger.error({ sandbox: this.#id, inARow, err: error }, 'a connection to a sandbox could not be closed');
    }
  }

  /** Leaves init time to close the connection after its last call. */
  async #closeLater(connection: Connection): Promise<void> {
    // Not the injected clock: the calls of the peer take real time.
    const grace = AbortSignal.any([connection.lost, this.#ending.signal, AbortSignal.timeout(closeGraceMs)]);
    if (!grace.aborted) await new Promise((resolve) => grace.addEventListener('abort', resolve, { once: true }));
    await this.#close(connection);
  }

  /** Aborts at the next `wake`. */
  #wakeable(): AbortSignal {
    const woken = new AbortController();
    this.#wake = () => woken.abort();
    return woken.signal;
  }

  async #pause(ms: number, woken = this.#wakeable()): Promise<void> {
    try {
      await this.#context.clock.sleep(ms, AbortSignal.any([this.#ending.signal, woken]));
    } catch {
      this.#ending.signal.throwIfAborted();
    } finally {
      this.#wake = undefined;
    }
  }

  #set(state: SessionStatus['state'], lastError: string): void {
    this.#status = { ...this.#status, state, since: this.#context.clock.now(), lastError };
    this.#context.changed(this.#id);
  }
}
