import { DroverError, silentLogger, systemClock, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import type { Hub } from '../hub/hub.ts';
import { listPage, sessionLookMs } from '../limits.ts';
import { sandboxState } from '../store/state.ts';
import type { SandboxRow, Store } from '../store/store.ts';
import type { SessionCredentials } from './connect.ts';
import type { InitClient, Sessions, SessionStatus } from './sessions.ts';
import { isDialable, Target } from './target.ts';

export interface SessionManagerOptions {
  readonly store: Pick<Store, 'sandboxes' | 'events'>;
  readonly hub: Pick<Hub, 'on' | 'openTunnel' | 'isConnected'>;
  /** The control plane's client credentials; a function is called for each attempt and gives the same object as long as they are the same. */
  readonly tls: SessionCredentials | (() => SessionCredentials);
  readonly clock?: Clock;
  readonly logger?: Logger;
  /** Draws the jitter of retries. */
  readonly random?: () => number;
}

const none: SessionStatus = { state: 'none', since: 0, attempts: 0, lastError: '' };

/** The sessions of this replica: one target per sandbox whose host's link is here. */
export class SessionManager implements Sessions {
  readonly #options: SessionManagerOptions;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #credentials: () => SessionCredentials;
  readonly #targets = new Map<SandboxId, Target>();
  readonly #waiters = new Map<SandboxId, Set<() => void>>();
  #looking = false;
  #closed = false;
  #detach: (() => void) | undefined;

  /** @throws {DroverError} invalid-config when the credentials cannot be had (I-28) */
  constructor(options: SessionManagerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#logger = options.logger ?? silentLogger;
    const { tls } = options;
    this.#credentials = typeof tls === 'function' ? tls : () => tls;
    const { certPem, keyPem, caPem } = this.#credentials();
    if (certPem === '' || keyPem === '' || caPem === '') {
      throw new DroverError('invalid-config', 'the control plane has no certificate to reach sandboxes with');
    }
  }

  /** Listens to the hub and dials what runs on the hosts that are connected already. Gives what stops it. */
  attach(): () => void {
    const off = [
      this.#options.hub.on({
        hostConnected: (_host, _epoch, _signal, seen) => this.#observed(seen.map((o) => o.sandboxId as SandboxId)),
        observed: (_host, observations) => this.#observed(observations.map((o) => o.sandboxId as SandboxId)),
      }),
      this.#options.store.events.onAppend(() => this.#lookSoon()),
    ];
    this.#detach = () => {
      for (const stop of off) stop();
      this.#detach = undefined;
    };
    // Hosts that connect later say what they run; those that are here already have said it.
    this.#dialRunning().catch((error: unknown) =>
      this.#logger.error({ err: error }, 'the running sandboxes could not be listed for their sessions'),
    );
    return () => this.#detach?.();
  }

  async #dialRunning(): Promise<void> {
    let after: SandboxRow | undefined;
    for (;;) {
      const rows = await this.#options.store.sandboxes.list({ limit: listPage, ...(after === undefined ? {} : { after }) });
      for (const row of rows) {
        if (row.hostId !== undefined && isDialable(row) && this.#options.hub.isConnected(row.hostId)) this.dial(row.id);
      }
      after = rows.at(-1);
      if (after === undefined || rows.length < listPage) return;
    }
  }

  dial(sandboxId: SandboxId): void {
    if (this.#closed) return;
    const standing = this.#targets.get(sandboxId);
    // I-22: one loop per sandbox; it goes when its session has ended.
    if (standing !== undefined && !standing.over) return;
    const target = new Target(sandboxId, {
      store: this.#options.store,
      hub: this.#options.hub,
      credentials: this.#credentials,
      clock: this.#clock,
      logger: this.#logger,
      ...(this.#options.random === undefined ? {} : { random: this.#options.random }),
      changed: (id) => this.#changed(id),
    });
    this.#targets.set(sandboxId, target);
  }

  close(sandboxId: SandboxId): void {
    const target = this.#targets.get(sandboxId);
    this.#targets.delete(sandboxId);
    target?.end();
  }

  status(sandboxId: SandboxId): SessionStatus {
    return this.#targets.get(sandboxId)?.status ?? none;
  }

  async client(sandboxId: SandboxId, signal: AbortSignal): Promise<InitClient> {
    let asked: Target | undefined;
    for (;;) {
      signal.throwIfAborted();
      // Before looking: what changes while the store is read must not be missed.
      using change = this.#nextChange(sandboxId);
      const client = this.#targets.get(sandboxId)?.client;
      if (client !== undefined) return client;
      const row = await this.#options.store.sandboxes.get(sandboxId);
      refuseEnded(sandboxId, row);
      const target = this.#targets.get(sandboxId);
      if (asked !== undefined && target === asked && asked.over && asked.failure !== undefined) throw asked.failure;
      if (row !== undefined && isDialable(row)) {
        if (target === undefined || target.over) this.dial(sandboxId);
        asked = this.#targets.get(sandboxId);
        if (this.#closed) throw new DroverError('session-unavailable', 'the control plane is stopping');
        if (asked?.client !== undefined) return asked.client;
      }
      await change.wait(signal);
    }
  }

  async closeAll(): Promise<void> {
    this.#closed = true;
    this.#detach?.();
    const targets = [...this.#targets.values()];
    this.#targets.clear();
    for (const target of targets) target.end();
    await Promise.all(targets.map((target) => target.done));
  }

  /** A host said something of these: the store holds it already. */
  #observed(ids: readonly SandboxId[]): void {
    for (const id of ids) {
      void this.#look(id).catch((error: unknown) =>
        this.#logger.error({ sandbox: id, err: error }, 'a sandbox could not be looked at for its session'),
      );
    }
  }

  async #look(id: SandboxId): Promise<void> {
    const row = await this.#options.store.sandboxes.get(id);
    const target = this.#targets.get(id);
    if (row !== undefined && isDialable(row)) {
      if (target === undefined || target.over) this.dial(id);
      else target.wake();
    } else if (target !== undefined) {
      target.wake();
      // Ended, and nothing to be told of it any more.
      if (target.over) this.#targets.delete(id);
    }
    this.#changed(id);
  }

  /** Wakes those who wait for `id`. */
  #changed(id: SandboxId): void {
    for (const wake of this.#waiters.get(id) ?? []) wake();
  }

  /** The store changed somewhere: everyone who waits looks, at most once in `sessionLookMs`. */
  #lookSoon(): void {
    if (this.#looking || this.#waiters.size === 0) return;
    this.#looking = true;
    setTimeout(() => {
      this.#looking = false;
      for (const id of this.#waiters.keys()) this.#changed(id);
    }, sessionLookMs).unref();
  }

  #nextChange(id: SandboxId): Disposable & { wait(signal: AbortSignal): Promise<void> } {
    const change = Promise.withResolvers<void>();
    let waiters = this.#waiters.get(id);
    if (waiters === undefined) this.#waiters.set(id, (waiters = new Set()));
    const set = waiters;
    set.add(change.resolve);
    return {
      wait: async (signal) => {
        signal.throwIfAborted();
        const abort = (): void => change.reject(signal.reason);
        signal.addEventListener('abort', abort, { once: true });
        try {
          await change.promise;
        } finally {
          signal.removeEventListener('abort', abort);
        }
      },
      [Symbol.dispose]: () => {
        set.delete(change.resolve);
        if (set.size === 0 && this.#waiters.get(id) === set) this.#waiters.delete(id);
      },
    };
  }
}

/** A sandbox that has ended, in its own words. */
function refuseEnded(id: SandboxId, row: SandboxRow | undefined): void {
  if (row === undefined)
    throw new DroverError('sandbox-not-found', `there is no sandbox ${id}`, { hint: '`drover sandbox ls` lists them' });
  const { state, message } = sandboxState(row);
  const why = message === '' ? '' : `: ${message}`;
  if (state === 'lost') {
    throw new DroverError('session-unavailable', `sandbox ${row.name} cannot be reached${why}`, { hint: 'see `drover host ls`' });
  }
  if (state === 'stopped' || state === 'failed' || state === 'deleted' || state === 'deleting') {
    throw new DroverError('sandbox-not-running', `sandbox ${row.name} is ${state}${why}`, {
      hint: '`drover sandbox start` starts one that has stopped',
    });
  }
}
