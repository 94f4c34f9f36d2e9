import type { X509Certificate } from 'node:crypto';
import { Backoff, canonicalCommonName, clip, DroverError, type HostId, type SandboxId } from '@drover/foundation';
import type { Names } from '@drover/pki';
import type { init } from '@drover/protocol';
import type { Hub } from '../hub/index.ts';
import {
  closeFailuresMax,
  dialAttemptMs,
  dialBackoffBaseMs,
  dialBackoffCapMs,
  dialTotalMs,
  endReportMs,
  farewellMs,
  interruptedPlansMax,
  maxInitErrorLength,
  sessionMessagesPerSecond,
} from '../limits.ts';
import { startOf, type SandboxRow } from '../model/index.ts';
import type { CrashBreaker } from './crash-breaker.ts';
import { CloseFailed, type Connection, type Connector } from './connect.ts';
import { failedUnbegun, mayHaveBegun, recall, Session, type Remembered, type SessionContext } from './session.ts';
import type { InitClient, SessionStatus } from './sessions.ts';
import { isDialable, isToRun } from './target.ts';
import { judge, type PeerVerdict } from './trust.ts';

export interface DialerOptions extends SessionContext {
  readonly hub: Pick<Hub, 'isConnected'>;
  readonly connect: Connector;
  readonly names: Names;
  readonly caPem: string;
  /** Which dials have to wait after a crash of the server; absent: none has. */
  readonly breaker?: Pick<CrashBreaker, 'admit'> | undefined;
  /** The state of the sandbox's session changed. */
  readonly changed: (id: SandboxId) => void;
}

/** Why a dial ended without a session (SessionFailed). */
type FailureReason =
  | 'not-running'
  | 'no-address'
  | 'host-not-connected'
  | 'unreachable'
  | 'init-interrupted'
  | 'fd-leak-ceiling'
  | 'internal';

class DialFailed extends Error {
  override readonly name = 'DialFailed';
  readonly reason: FailureReason;
  readonly hint: string;

  constructor(reason: FailureReason, message: string, hint: string, cause?: unknown) {
    super(message, { cause });
    this.reason = reason;
    this.hint = hint;
  }
}

/** What is kept of a sandbox between its dials; it goes with the sandbox. */
export interface Memory extends Remembered {
  /** The start that was dialled last, and the host that counted it; 0: none. */
  start: number;
  host: HostId | undefined;
  /** In a row (I-25). */
  closeFailures: number;
}

export const none: SessionStatus = { state: 'none', since: 0, attempts: 0, lastError: '' };

export interface DialContext extends DialerOptions {
  readonly caCertificate: X509Certificate;
  readonly memory: Memory;
  readonly dropped: () => void;
  /** A closing that nobody has to wait for. It never rejects. */
  readonly inBackground: (closing: Promise<void>) => void;
}

export interface DialView {
  readonly status: SessionStatus;
  readonly client: InitClient | undefined;
  /** The thumbprint under which its peer is trusted now; undefined when none is. */
  readonly trustedAs: string | undefined;
  /** Its loop has ended: nothing more comes of it. */
  readonly over: boolean;
  /** Why the loop ended without a session, when that was not intended. */
  readonly failure: DroverError | undefined;
  /** Why it waits to be dialled after a crash of the server. */
  readonly delayed: DroverError | undefined;
  /** It failed for descriptors (I-25): only one who needs the session, or another start, is worth another. */
  readonly leaking: boolean;
  /** The start of the sandbox that was dialled last. */
  readonly startCount: number;
}

type Reachable = SandboxRow & { readonly hostId: HostId };

/** How one connection ended: with the sandbox, or before it. */
type AttemptEnd = 'sandbox-ended' | 'broken';

/** The dialling of one sandbox: one loop, from the first attempt until the session is over for good (I-22 to I-24). */
export class Dial implements DialView {
  readonly #id: SandboxId;
  /** Its loop has ended. */
  readonly done: Promise<void>;
  /** And what it had open is closed. */
  readonly gone: Promise<void>;
  readonly #context: DialContext;
  readonly #ending = new AbortController();
  readonly #backoff: Backoff;
  #client: InitClient | undefined;
  #session: Session | undefined;
  #status: SessionStatus;
  #failure: DroverError | undefined;
  #reason: FailureReason | undefined;
  #delayed: DroverError | undefined;
  #startCount = 0;
  #over = false;
  /** The last connection, when the sandbox has ended. */
  #closing: Promise<void> | undefined;
  #wake: (() => void) | undefined;
  /** What follows when it has been ended. */
  next: (() => void) | undefined;
  /** It redials a lost session: one attempt, which publishes nothing unless it succeeds. */
  #slow: boolean;

  constructor(id: SandboxId, context: DialContext, slow = false) {
    this.#id = id;
    this.#context = context;
    this.#slow = slow;
    const { random } = context;
    this.#backoff = new Backoff({ baseMs: dialBackoffBaseMs, capMs: dialBackoffCapMs, ...(random === undefined ? {} : { random }) });
    this.#status = { state: 'connecting', since: context.clock.now(), attempts: 0, lastError: '' };
    this.done = this.#run();
    this.gone = this.done.then(async () => await this.#closing);
  }

  get client(): InitClient | undefined {
    return this.ending ? undefined : this.#client;
  }

  get trustedAs(): string | undefined {
    return this.ending ? undefined : this.#session?.trustedAs;
  }

  get status(): SessionStatus {
    return this.ending ? none : this.#status;
  }

  get ending(): boolean {
    return this.#ending.signal.aborted;
  }

  get over(): boolean {
    return this.#over;
  }

  get failure(): DroverError | undefined {
    return this.#failure;
  }

  get delayed(): DroverError | undefined {
    return this.#delayed;
  }

  get leaking(): boolean {
    return this.#reason === 'fd-leak-ceiling';
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

  async #run(): Promise<void> {
    // The caller of dial() gets nothing thrown (I-21), and what goes wrong in here touches no other (I-26).
    try {
      await this.#loop();
      this.#set('none', '');
    } catch (thrown) {
      if (this.#ending.signal.aborted) this.#set('none', '');
      else this.#failed(thrown instanceof DialFailed ? thrown : unexpected(thrown));
    } finally {
      this.#over = true;
      this.#client = undefined;
      this.#context.changed(this.#id);
    }
  }

  #failed(error: DialFailed): void {
    const { journal, logger } = this.#context;
    const { attempts } = this.#status;
    this.#reason = error.reason;
    this.#failure = new DroverError('session-unavailable', error.message, { hint: error.hint, cause: error.cause });
    this.#set('broken', error.message);
    if (this.#slow) return logger.info({ sandbox: this.#id, reason: error.reason, err: error }, 'a lost session could not be redialled');
    logger.warn({ sandbox: this.#id, attempts, reason: error.reason, err: error }, 'SessionFailed');
    const data = { attempts, reason: error.reason, message: error.message };
    journal.publish({ kind: 'session', type: 'SessionFailed', subject: this.#id, data });
  }

  /** Dials, and dials again what broke, until the sandbox has ended. @throws {DialFailed} */
  async #loop(): Promise<void> {
    const { store, journal, logger, memory } = this.#context;
    for (;;) {
      await this.#admitted();
      const ended = (await this.#dial()) === 'sandbox-ended';
      const row = ended ? await this.#afterItsEnd() : await store.sandboxes.get(this.#id);
      this.#ending.signal.throwIfAborted();
      // I-24: a stop, a pause or a removal ends a session as it should.
      if (!isToRun(row)) return;
      if (ended && startOf(row) !== this.#startCount) continue;
      const message = ended ? 'its init said that the main process had ended, and its host says that it runs' : this.#status.lastError;
      if (ended && !mayHaveBegun(memory, this.#startCount)) memory.interruptedPlans++;
      logger.warn({ sandbox: this.#id, reason: message }, 'SessionBroken');
      journal.publish({ kind: 'session', type: 'SessionBroken', subject: this.#id, data: { message } });
      if (memory.interruptedPlans >= interruptedPlansMax) await this.#planFailed(row, message);
      await this.#pause(this.#backoff.nextMs());
    }
  }

  /** After crashes of the server, a dial waits until the breaker admits it. Waiting is no attempt, and fails no start. */
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
    const { signal } = this.#ending;
    const ended = Promise.withResolvers<never>();
    const abort = (): void => ended.reject(signal.reason as Error);
    signal.addEventListener('abort', abort, { once: true });
    try {
      signal.throwIfAborted();
      await Promise.race([admitted, ended.promise]);
    } finally {
      signal.removeEventListener('abort', abort);
      cancel();
      this.#delayed = undefined;
    }
  }

  /**
   * A sandbox has ended when its host says so: an init that says it only to be rid of its session is dialled again (I-2). Gives the row
   * when its host has spoken, or as it is after `endReportMs`; undefined when the host is away, whose word begins another dial.
   */
  async #afterItsEnd(): Promise<SandboxRow | undefined> {
    const { store, hub, clock } = this.#context;
    this.#set('none', '');
    const until = clock.now() + endReportMs;
    for (;;) {
      // Before looking: what is said while the store is read must not be missed.
      const woken = this.#wakeable();
      const row = await store.sandboxes.get(this.#id);
      const left = until - clock.now();
      if (!isToRun(row) || startOf(row) !== this.#startCount || left <= 0) return row;
      if (row.hostId === undefined || !hub.isConnected(row.hostId)) return undefined;
      await this.#pause(left, woken);
    }
  }

  /** One dial (I-23): attempts until one stands; gives how its session ended. @throws {DialFailed} */
  async #dial(): Promise<AttemptEnd> {
    const { clock, logger, store } = this.#context;
    const signal = this.#ending.signal;
    let until = clock.now() + dialTotalMs;
    let runs = false;
    this.#status = { ...this.#status, attempts: 0 };
    for (;;) {
      let stood = false;
      let row: Reachable | undefined;
      try {
        row = this.#mustBeReachable(await store.sandboxes.get(this.#id));
        signal.throwIfAborted();
        // How long it takes to start is its host's business (L-23): the time for an answer begins when it runs.
        if (!runs && row.observed === 'running') {
          runs = true;
          until = clock.now() + dialTotalMs;
        }
        return await this.#attempt(row, Math.min(dialAttemptMs, until - clock.now()), () => {
          stood = true;
          this.#slow = false;
        });
      } catch (thrown) {
        signal.throwIfAborted();
        if (thrown instanceof DialFailed) throw thrown;
        const message = clip(thrown instanceof Error ? thrown.message : String(thrown), maxInitErrorLength);
        this.#set(stood ? 'broken' : 'connecting', message);
        if (this.#context.memory.closeFailures >= closeFailuresMax) {
          throw new DialFailed(
            'fd-leak-ceiling',
            `${closeFailuresMax} connections in a row could not be closed: ${message}`,
            'see the log of the control plane; a restart of it closes them',
            thrown,
          );
        }
        if (stood) return 'broken';
        logger.info({ sandbox: this.#id, attempt: this.#status.attempts, reason: message }, 'a session attempt failed');
        const delayMs = this.#backoff.nextMs();
        if (this.#slow || clock.now() + delayMs >= until) {
          if (row !== undefined && (await this.#neverBegan(row))) {
            if (this.#context.memory.interruptedPlans > 0) await this.#planFailed(row, message);
            await this.#failUnbegun(row, message);
          }
          throw new DialFailed(
            'unreachable',
            `no session with the sandbox could be had: ${message}`,
            '`drover sandbox get` shows its state',
            thrown,
          );
        }
        await this.#pause(delayMs);
      }
    }
  }

  /** Each attempt inspects afresh (I-23). @throws {DialFailed} */
  #mustBeReachable(row: SandboxRow | undefined): Reachable {
    if (row === undefined || !isDialable(row)) {
      const state = row === undefined || row.deletedAt !== undefined ? 'removed' : (row.observed ?? 'waiting for a place');
      throw new DialFailed('not-running', `the sandbox is not running: it is ${state}`, '`drover sandbox get` shows its state');
    }
    const { hostId } = row;
    if (hostId === undefined || row.address === '') {
      throw new DialFailed('no-address', 'the sandbox has no address yet', '`drover sandbox get` shows its state');
    }
    if (!this.#context.hub.isConnected(hostId)) {
      throw new DialFailed('host-not-connected', 'the host of the sandbox is not connected', 'see `drover host ls`');
    }
    // Not a copy: that would read its spec.
    return row as Reachable;
  }

  /**
   * The sandbox runs, and its user's command cannot have begun: no session came as far as starting it. Where that is not certain, the
   * command may be at work, and the sandbox is left alone.
   */
  async #neverBegan(row: Reachable): Promise<boolean> {
    const { memory, worldview, logger } = this.#context;
    const start = startOf(row);
    if (row.observed !== 'running' || mayHaveBegun(memory, start)) return false;
    try {
      const { init: view } = await worldview.get(this.#id);
      recall(memory, view, start);
      return !mayHaveBegun(memory, start);
    } catch (error) {
      logger.error({ sandbox: this.#id, err: error }, 'the view of a sandbox that does not answer could not be read');
      return false;
    }
  }

  /** I-30: what never began must not look as if it ran, nor as if it were about to. */
  async #failUnbegun(row: Reachable, message: string): Promise<void> {
    const { initFailed, journal, logger } = this.#context;
    const said = `its command was never started, since its init could not be reached for ${dialTotalMs / 1000} s: ${message}`;
    try {
      if (!(await initFailed(this.#id, startOf(row), `init failed: ${said}`))) return;
      journal.publish(failedUnbegun(row, startOf(row), { reason: 'transport-error', message: said }));
    } catch (error) {
      logger.error({ sandbox: this.#id, err: error }, 'a failed init could not be written down');
    }
  }

  /** The plan was begun, and no session lasts for it: that is its failure (I-30). @throws {DialFailed} */
  async #planFailed(row: SandboxRow, message: string): Promise<never> {
    const { initFailed, logger, memory } = this.#context;
    memory.interruptedPlans = 0;
    try {
      await initFailed(this.#id, startOf(row), `init failed: the session broke again and again: ${message}`);
    } catch (error) {
      logger.error({ sandbox: this.#id, err: error }, 'a failed init could not be written down');
    }
    throw new DialFailed(
      'init-interrupted',
      `the session broke again and again before the sandbox was prepared: ${message}`,
      'see `drover sandbox explain`',
    );
  }

  /** One connection's life. @throws what broke it, whether or not it stood */
  async #attempt(row: Reachable, withinMs: number, stands: () => void): Promise<AttemptEnd> {
    const { clock, connect, journal, memory, dropped, names, caCertificate } = this.#context;
    const attempt = this.#status.attempts + 1;
    this.#status = { ...this.#status, state: 'connecting', attempts: attempt };
    this.#startCount = startOf(row);
    if (memory.start !== this.#startCount) memory.interruptedPlans = 0;
    // A host counts the starts of its own copy.
    if (memory.host !== row.hostId) Object.assign(memory, { completedStart: 0, readyAsked: 0, interruptedPlans: 0 });
    memory.start = this.#startCount;
    memory.host = row.hostId;
    if (!this.#slow) journal.publish({ kind: 'session', type: 'SessionConnecting', subject: this.#id, data: { attempt } });
    const answered = new AbortController();
    const deadline = new AbortController();
    void clock.sleep(withinMs, answered.signal).then(
      () => deadline.abort(new DroverError('timed-out', 'the sandbox did not answer in time')),
      // The attempt ended or stands: no deadline any more.
      () => undefined,
    );
    const signal = AbortSignal.any([this.#ending.signal, deadline.signal]);
    let connection: Connection | undefined;
    let ended = false;
    let settledAt: number | undefined;
    try {
      connection = await connect({ id: this.#id, hostId: row.hostId }, signal);
      const expected = { id: this.#id, commonName: canonicalCommonName(row.project, row.name), names, ca: caCertificate, now: clock.now() };
      const verdict = judge(connection.shown, expected);
      connection.throttled.addEventListener('abort', () => this.#publishThrottled(), { once: true });
      // Calls may go out at once: init has a call on the main process wait for its start.
      this.#client = connection.client;
      this.#set('connected', '');
      const greeted = (ack: init.HelloAck): void => {
        answered.abort();
        stands();
        this.#publishConnected(row, verdict, ack);
      };
      const settled = (): void => {
        settledAt = clock.now();
        memory.interruptedPlans = 0;
      };
      const options = { row, connection, verdict, remembered: memory, greeted, dropped, settled };
      this.#session = new Session(this.#context, options, signal);
      const end = await this.#session.run();
      if (!end.mainExited) throw new Error(end.reason);
      ended = true;
      return 'sandbox-ended';
    } catch (thrown) {
      if (thrown instanceof CloseFailed) memory.closeFailures++;
      throw deadline.signal.aborted ? deadline.signal.reason : thrown;
    } finally {
      answered.abort();
      this.#client = undefined;
      this.#session = undefined;
      // A peer that breaks off as soon as it was prepared is dialled ever more slowly.
      if (settledAt !== undefined && clock.now() - settledAt >= dialBackoffCapMs) this.#backoff.reset();
      // I-26: nothing of a dial outlives it; but calls that have the end of the main process still to read are given the time to.
      if (connection !== undefined) {
        if (ended) this.#context.inBackground((this.#closing = this.#closeLater(connection)));
        else await this.#close(connection);
      }
    }
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

  /** I-25: failures in a row are counted, and a success begins anew. Never rejects. */
  async #close(connection: Connection): Promise<void> {
    const { memory, logger } = this.#context;
    try {
      await connection.close();
      memory.closeFailures = 0;
    } catch (error) {
      memory.closeFailures++;
      logger.error({ sandbox: this.#id, inARow: memory.closeFailures, err: error }, 'a connection to a sandbox could not be closed');
    }
  }

  /** Init closes the connection itself once the last call has its end. */
  async #closeLater(connection: Connection): Promise<void> {
    // Not the injected clock: this is about the peer's calls, and ends with them.
    const { lost } = connection;
    if (!lost.aborted) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, farewellMs);
        timer.unref();
        const now = (): void => {
          clearTimeout(timer);
          resolve();
        };
        lost.addEventListener('abort', now, { once: true });
        this.#ending.signal.addEventListener('abort', now, { once: true });
      });
    }
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

function unexpected(thrown: unknown): DialFailed {
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new DialFailed('internal', `the dial of the sandbox failed: ${message}`, 'see the log of the control plane', thrown);
}
