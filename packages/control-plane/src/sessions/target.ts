import type { Logger } from '@drover/foundation';
import { Backoff, DroverError, type Clock, type SandboxId } from '@drover/foundation';
import { dialAttemptMs, dialBackoffBaseMs, dialBackoffCapMs, dialTotalMs, farewellMs } from '../limits.ts';
import type { Hub } from '../hub/hub.ts';
import type { SandboxRow, Store } from '../store/store.ts';
import { connectInit, type Connection, type SessionCredentials } from './connect.ts';
import { runSession } from './session.ts';
import type { InitClient, SessionStatus } from './sessions.ts';

export interface TargetContext {
  readonly store: Pick<Store, 'sandboxes'>;
  readonly hub: Pick<Hub, 'openTunnel' | 'isConnected'>;
  readonly credentials: () => SessionCredentials;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Draws the jitter; tests give a fixed one. */
  readonly random?: () => number;
  /** Its state changed. */
  readonly changed: (id: SandboxId) => void;
}

/** Has an init that can be reached, as far as the store knows: one that starts is about to listen, and the host's end waits for it. */
export function isDialable(row: SandboxRow): boolean {
  return (
    row.hostId !== undefined &&
    row.deletedAt === undefined &&
    row.lostSince === undefined &&
    (row.observed === 'starting' || row.observed === 'running' || row.observed === 'stopping')
  );
}

/** The dialling of one sandbox: one loop, from the first attempt until the session is over for good (I-22 to I-24). */
export class Target {
  readonly id: SandboxId;
  readonly done: Promise<void>;
  readonly #context: TargetContext;
  readonly #ending = new AbortController();
  #client: InitClient | undefined;
  #status: SessionStatus;
  #failure: DroverError | undefined;
  #over = false;
  #wake: (() => void) | undefined;

  constructor(id: SandboxId, context: TargetContext) {
    this.id = id;
    this.#context = context;
    this.#status = { state: 'connecting', since: context.clock.now(), attempts: 0, lastError: '' };
    this.done = this.#run();
  }

  get client(): InitClient | undefined {
    return this.#client;
  }

  get status(): SessionStatus {
    return this.#status;
  }

  /** Its loop has ended: nothing more comes of it. */
  get over(): boolean {
    return this.#over;
  }

  /** Why the loop ended without a session, when that was not intended. */
  get failure(): DroverError | undefined {
    return this.#failure;
  }

  /** Something changed: a loop that waits looks again now. */
  wake(): void {
    this.#wake?.();
  }

  /** An intended end (I-24). */
  end(): void {
    this.#ending.abort(new DroverError('cancelled', 'the session was closed'));
  }

  async #run(): Promise<void> {
    // The caller of dial() gets nothing thrown (I-21), and this loop's failure touches no other (I-26).
    try {
      await this.#loop();
      this.#set('none', '');
    } catch (thrown) {
      const error = DroverError.from(thrown, 'session-unavailable');
      if (this.#ending.signal.aborted) {
        this.#set('none', '');
      } else {
        this.#failure = error;
        this.#set('broken', error.message);
        this.#context.logger.warn({ sandbox: this.id, attempts: this.#status.attempts, err: error }, 'SessionFailed');
      }
    } finally {
      this.#over = true;
      this.#client = undefined;
      this.#context.changed(this.id);
    }
  }

  async #loop(): Promise<void> {
    const { clock, logger, random } = this.#context;
    const signal = this.#ending.signal;
    const backoff = new Backoff({ baseMs: dialBackoffBaseMs, capMs: dialBackoffCapMs, ...(random === undefined ? {} : { random }) });
    let begun = clock.now();
    for (;;) {
      // Each attempt inspects afresh (I-23).
      const row = await this.#context.store.sandboxes.get(this.id);
      signal.throwIfAborted();
      if (row?.hostId === undefined || !isDialable(row)) return;
      if (!this.#context.hub.isConnected(row.hostId)) {
        throw new DroverError('session-unavailable', 'the host of the sandbox is not connected', { hint: 'see `drover host ls`' });
      }
      try {
        const over = await this.#attempt(row.hostId, () => {
          backoff.reset();
          begun = Number.POSITIVE_INFINITY;
        });
        if (over) return;
        begun = clock.now();
        logger.warn({ sandbox: this.id }, 'SessionBroken');
      } catch (thrown) {
        signal.throwIfAborted();
        const stood = begun === Number.POSITIVE_INFINITY;
        if (stood) begun = clock.now();
        const message = thrown instanceof Error ? thrown.message : String(thrown);
        this.#set(stood ? 'broken' : 'connecting', message);
        logger.info(
          { sandbox: this.id, attempt: this.#status.attempts, reason: message },
          stood ? 'SessionBroken' : 'session attempt failed',
        );
        if (clock.now() - begun >= dialTotalMs) {
          throw new DroverError('session-unavailable', `no session with the sandbox could be had: ${message}`, {
            hint: '`drover sandbox get` shows its state',
            cause: thrown,
          });
        }
      }
      await this.#pause(backoff.nextMs());
    }
  }

  /** One connection's life; true when the main process ended within it. */
  async #attempt(hostId: NonNullable<SandboxRow['hostId']>, stands: () => void): Promise<boolean> {
    const { clock, hub, logger } = this.#context;
    this.#status = { ...this.#status, attempts: this.#status.attempts + 1 };
    const attempt = new AbortController();
    const deadline = new AbortController();
    void clock.sleep(dialAttemptMs, attempt.signal).then(
      () => deadline.abort(new DroverError('timed-out', 'the sandbox did not answer in time')),
      // The attempt ended or stands: no deadline any more.
      () => undefined,
    );
    const signal = AbortSignal.any([this.#ending.signal, deadline.signal]);
    let connection: Connection | undefined;
    let ended = false;
    try {
      const tunnel = await hub.openTunnel(hostId, { sandboxId: this.id, port: 'init' }, signal);
      connection = await connectInit(tunnel, this.id, this.#context.credentials(), signal);
      const { verdict } = connection;
      if (verdict.problem !== '') logger.warn({ sandbox: this.id, verdict }, 'AgentUntrusted');
      // Calls may go out at once: init has a call on the main process wait for its start.
      this.#client = connection.client;
      this.#set('connected', '');
      const end = await runSession(this.id, connection, signal, {
        greeted: (ack) => {
          attempt.abort();
          stands();
          logger.info(
            { sandbox: this.id, attempts: this.#status.attempts, bootId: ack.bootId, thumbprint: verdict.thumbprint },
            'SessionConnected',
          );
        },
        startFailed: (error) => logger.warn({ sandbox: this.id, err: error }, 'InitFailed'),
      });
      if (!end.mainExited) throw new Error(end.reason);
      ended = true;
      return true;
    } finally {
      attempt.abort();
      this.#client = undefined;
      // I-26: nothing of a dial outlives it; but calls that have the end of the main process still to read are given the time to.
      if (ended && connection !== undefined) closeLater(connection);
      else connection?.close();
    }
  }

  async #pause(ms: number): Promise<void> {
    const woken = new AbortController();
    this.#wake = () => woken.abort();
    try {
      await this.#context.clock.sleep(ms, AbortSignal.any([this.#ending.signal, woken.signal]));
    } catch {
      this.#ending.signal.throwIfAborted();
    } finally {
      this.#wake = undefined;
    }
  }

  #set(state: SessionStatus['state'], lastError: string): void {
    this.#status = { ...this.#status, state, since: this.#context.clock.now(), lastError };
    this.#context.changed(this.id);
  }
}

/** Init closes the connection itself once the last call has its end. */
function closeLater(connection: Connection): void {
  const timer = setTimeout(() => connection.close(), farewellMs);
  timer.unref();
  const lost = (): void => {
    clearTimeout(timer);
    connection.close();
  };
  if (connection.lost.aborted) lost();
  else connection.lost.addEventListener('abort', lost, { once: true });
}
