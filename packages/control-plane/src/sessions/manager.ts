import { X509Certificate } from 'node:crypto';
import { createSecureContext } from 'node:tls';
import { DroverError, isSandboxId, systemClock, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import type { CertificateAuthority } from '@drover/pki';
import type { Hub } from '../hub/index.ts';
import type { EventFeed } from '../feed/index.ts';
import { changesIdentity, type Registry } from '../identity/index.ts';
import { listPage, sessionsCompared } from '../limits.ts';
import { restartHint, sandboxState, startOf, type SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';
import { tunnelConnector, type InitClient, type SessionCredentials } from './connection/index.ts';
import type { DialerOptions, DialView } from './dial.ts';
import { Dialer, type DialerStats } from './dialer.ts';
import type { SessionContext } from './context.ts';
import type { Sessions, SessionStatus } from './sessions.ts';
import { isDialable, isToRun } from './policy/index.ts';

export interface SessionManagerOptions extends Omit<SessionContext, 'store' | 'ca' | 'clock' | 'logger'> {
  readonly store: Pick<Store, 'sandboxes'>;
  readonly hub: Pick<Hub, 'openTunnel' | 'isConnected'>;
  readonly feed: Pick<EventFeed, 'listen' | 'until' | 'wake'>;
  /** The control plane's client credentials. A function is called for each attempt, and returns the same object until they change. */
  readonly tls: SessionCredentials | (() => SessionCredentials);
  readonly registry: SessionContext['registry'] & Pick<Registry, 'findAll'>;
  readonly ca: Pick<CertificateAuthority, 'renewSandbox' | 'names'>;
  /** Delays dials after a crash of the server; absent: no delay. */
  readonly breaker?: DialerOptions['breaker'];
  readonly clock?: Clock;
  readonly logger?: Logger;
}

/** Dials the sandboxes of this replica's hosts. The stored state decides whether to dial; events only trigger the check. */
export class SessionManager implements Sessions {
  readonly #options: SessionManagerOptions;
  readonly #logger: Logger;
  readonly #dialer: Dialer;
  #comparedLast: SandboxId | undefined;
  #closed = false;
  #detach: (() => void) | undefined;

  /** @throws {DroverError} invalid-config when the credentials are missing or unreadable (I-28) */
  constructor(options: SessionManagerOptions) {
    this.#options = options;
    const { tls, hub, ca, clock = systemClock, logger = silentLogger } = options;
    this.#logger = logger;
    const credentials = typeof tls === 'function' ? tls : () => tls;
    checkCredentials(credentials());
    this.#dialer = new Dialer({
      ...options,
      clock,
      logger,
      names: ca.names,
      caPem: credentials().caPem,
      connect: tunnelConnector(hub, credentials, clock),
      changed: options.feed.wake,
    });
  }

  /** Subscribes to changes, and dials the sandboxes that run on connected hosts. @returns a function that unsubscribes */
  attach(): () => void {
    const { feed } = this.#options;
    this.#detach = feed.listen((subject, event) => {
      if (!isSandboxId(subject)) return;
      if (event === undefined) this.#check(subject);
      // I-11: an eviction ends the session. A sandbox that still runs is redialled under its present identity.
      else if (changesIdentity(event)) this.redial(subject);
    });
    // Hosts that connect later report their sandboxes.
    this.#dialRunning().catch((error: unknown) =>
      this.#logger.error({ err: error }, 'the running sandboxes could not be listed for their sessions'),
    );
    return this.#detach;
  }

  async #dialRunning(): Promise<void> {
    let after: SandboxRow | undefined;
    for (;;) {
      const rows = await this.#options.store.sandboxes.list({ limit: listPage, ...(after === undefined ? {} : { after }) });
      for (const row of rows) {
        if (row.hostId !== undefined && isToRun(row) && this.#options.hub.isConnected(row.hostId)) this.dial(row.id);
      }
      after = rows.at(-1);
      if (after === undefined || rows.length < listPage) return;
    }
  }

  dial(sandboxId: SandboxId): void {
    this.#dialer.dial(sandboxId);
  }

  close(sandboxId: SandboxId): void {
    this.#dialer.forget(sandboxId);
  }

  redial(sandboxId: SandboxId): void {
    void this.#dialer.end(sandboxId);
    this.#check(sandboxId);
  }

  status(sandboxId: SandboxId): SessionStatus {
    return this.#dialer.status(sandboxId);
  }

  stats(): DialerStats {
    return this.#dialer.stats();
  }

  async client(sandboxId: SandboxId, signal: AbortSignal): Promise<InitClient> {
    let dialled: DialView | undefined;
    const findClient = async (): Promise<InitClient | undefined> => {
      const client = this.#dialer.client(sandboxId);
      if (client !== undefined) return client;
      const row = await this.#options.store.sandboxes.get(sandboxId);
      refuseEnded(sandboxId, row);
      const last = this.#dialer.get(sandboxId);
      if (dialled !== undefined && last === dialled && dialled.ended && dialled.failure !== undefined) throw dialled.failure;
      if (row === undefined || !isDialable(row)) return undefined;
      this.dial(sandboxId);
      dialled = this.#dialer.get(sandboxId);
      if (this.#closed) throw new DroverError('session-unavailable', 'the control plane is stopping');
      if (dialled?.delayed !== undefined) throw dialled.delayed;
      return dialled?.client;
    };
    return await this.#options.feed.until(sandboxId, findClient, signal);
  }

  /**
   * I-11: redials each session whose peer is trusted under a thumbprint that the registry no longer holds, even if the event of the eviction
   * was lost. Compares at most `sessionsCompared` sessions; the next call continues with the others.
   */
  async compare(): Promise<void> {
    const trusted: (readonly [SandboxId, string])[] = [];
    // Continue after the session that was compared last; start over after the end of the list.
    let passed = this.#comparedLast === undefined;
    for (const entry of this.#dialer.trusted()) {
      if (passed) trusted.push(entry);
      else passed = entry[0] === this.#comparedLast;
      if (trusted.length >= sessionsCompared) break;
    }
    this.#comparedLast = trusted.length < sessionsCompared ? undefined : trusted.at(-1)?.[0];
    if (trusted.length === 0) return;
    const identities = await this.#options.registry.findAll(trusted.map(([id]) => id));
    for (const [id, thumbprint] of trusted) {
      const identity = identities.get(id);
      if (identity?.thumbprint === thumbprint || identity?.nextThumbprint === thumbprint) continue;
      // The session ended or its certificate was renewed during the read: the next call compares it.
      if (this.#dialer.get(id)?.trustedAs !== thumbprint) continue;
      this.#logger.warn({ sandbox: id, thumbprint }, 'a session was open under an evicted identity; redialling');
      this.redial(id);
    }
  }

  async closeAll(): Promise<void> {
    this.#closed = true;
    this.#detach?.();
    await this.#dialer.close();
  }

  #check(id: SandboxId): void {
    this.#follow(id).catch((error: unknown) =>
      this.#logger.error({ sandbox: id, err: error }, 'a sandbox could not be read for its session'),
    );
  }

  /** Dials or ends the session, depending on the stored state of the sandbox. */
  async #follow(id: SandboxId): Promise<void> {
    const row = await this.#options.store.sandboxes.get(id);
    this.#dialer.wake(id);
    const last = this.#dialer.get(id);
    if (isToRun(row)) {
      // I-25: an observation must not cause a dial that would leak another descriptor.
      if (last?.failure?.reason !== 'fd-leak-ceiling' || last.startCount !== startOf(row)) this.dial(id);
    } else if (last?.ended === true) void this.#dialer.end(id);
  }
}

/** I-28: unusable credentials fail the start, not the first dial. */
function checkCredentials({ certPem, keyPem, caPem }: SessionCredentials): void {
  const hint = 'restore the directory pki of the data directory from a backup';
  if (certPem === '' || keyPem === '' || caPem === '') {
    throw new DroverError('invalid-config', 'the control plane has no certificate to reach sandboxes with', { hint });
  }
  try {
    createSecureContext({ cert: certPem, key: keyPem, ca: caPem });
    void new X509Certificate(caPem);
  } catch (error) {
    throw new DroverError('invalid-config', 'the certificate that the control plane reaches sandboxes with cannot be read', {
      hint,
      cause: error,
    });
  }
}

/** Refuses a sandbox that cannot have a session. @throws {DroverError} with its state and the reason of its end */
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
      hint: state === 'deleted' || state === 'deleting' ? 'create a new sandbox' : restartHint(row),
    });
  }
}
