import { createHash } from 'node:crypto';
import { Backoff, DroverError, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { clockSkewMs, hashSecret, newSecret, sandboxLifetimeMs } from '@drover/pki';
import type { EventFeed } from '../feed/index.ts';
import type { Journal } from '../events/index.ts';
import { listPageMax, reapAttempts, reapBackoffBaseMs, reapBackoffCapMs, secondTokenMs } from '../limits.ts';
import type { Store } from '../store/index.ts';
import { AddressWait } from './address-wait.ts';
import { addressMatches, claimedNames, crossCheck, outcomeChecks, sameText } from './checks.ts';
import { LastSeen } from './last-seen.ts';
import type { EvictionCause, Identity } from '../model/index.ts';
import type { Lookup, RegisterClaim, RegisterOutcome, Standing } from './claims.ts';

export interface RegistryOptions {
  readonly store: Pick<Store, 'identities' | 'sandboxes'>;
  /** Publishes the events that no store transaction writes. */
  readonly journal: Pick<Journal, 'publish'>;
  /** Absent: Register only polls the record that it waits for. */
  readonly feed?: Pick<EventFeed, 'on'>;
  /** The name of this replica, the subject of its own events. */
  readonly replica: string;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Draws the jitter of retries. */
  readonly random?: () => number;
}

const unknown: Lookup = { kind: 'unknown' };

/**
 * The thumbprints of registered sandboxes (I-7 to I-12). Each rule uses one store transaction. Only the control plane writes.
 * No input from outside makes a method throw; a zero thumbprint or an empty sandbox id is a programming error and does (I-8).
 */
export class Registry {
  readonly #options: RegistryOptions;
  readonly #records: AddressWait;
  readonly #lastSeen: LastSeen;

  constructor(options: RegistryOptions) {
    this.#options = options;
    this.#records = new AddressWait(options.store.sandboxes, options.feed, options.clock);
    this.#lastSeen = new LastSeen(options.store.identities, options.clock, options.logger);
  }

  /** Writes the times at which sandboxes were last seen, until the signal aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    await this.#lastSeen.run(signal);
  }

  /**
   * Records a certificate that was issued for a start of the sandbox. A repeated request has another certificate of the same start; only one
   * of them registers.
   * @param certificate `csrDer`: its signing request; absent: it is the only certificate of its start
   * @returns the single-use bootstrap token that registers it (I-13)
   * @throws {DroverError} sandbox-not-found, and the errors of the store
   */
  async issued({
    sandboxId,
    thumbprint,
    notAfter,
    csrDer,
  }: {
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly notAfter: number;
    readonly csrDer?: Uint8Array;
  }): Promise<string> {
    demand(sandboxId, thumbprint);
    const token = newSecret();
    await this.#options.store.identities.issue({
      hash: hashSecret(token),
      sandboxId,
      thumbprint,
      requestHash: csrDer === undefined ? thumbprint : createHash('sha256').update(csrDer).digest('hex'),
      // TLS enforces the expiry of the certificate. The token outlives it by the tolerated clock skew (I-17).
      expiresAt: notAfter + clockSkewMs,
    });
    return token;
  }

  async register(claim: RegisterClaim): Promise<RegisterOutcome> {
    demand(claim.sandboxId, claim.thumbprint);
    try {
      return await this.#register(claim);
    } catch (error) {
      this.#options.logger.error({ err: error, sandboxId: claim.sandboxId }, 'a registration could not be stored');
      return { kind: 'storage-failed', error };
    }
  }

  /** Compares the CN with the stored one in constant time (I-9). */
  async lookup(thumbprint: string, commonName: string): Promise<Lookup> {
    demandThumbprint(thumbprint);
    const identity = await this.#find(async (identities) => await identities.find(thumbprint));
    // I-9: every failure has the same result.
    return identity !== undefined && sameText(identity.commonName, commonName) ? { kind: 'found', identity } : unknown;
  }

  /** Does not check the CN: the caller reports a mismatch with its own outcome. */
  async lookupBySandbox(id: SandboxId): Promise<Lookup> {
    demandId(id);
    const identity = await this.#find(async (identities) => await identities.findBySandbox(id));
    return identity === undefined ? unknown : { kind: 'found', identity };
  }

  /** The rows of the sandboxes, without those that have none. @throws {DroverError} the errors of the store */
  async findAll(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, Identity>> {
    return await this.#options.store.identities.findBySandboxes(ids);
  }

  /** @throws {DroverError} the errors of the store: the dialer distinguishes a failed lookup from one without a result */
  async standing(id: SandboxId, thumbprint: string): Promise<Standing> {
    demand(id, thumbprint);
    const { identities, sandboxes } = this.#options.store;
    const row = await sandboxes.get(id);
    const revoked = row?.revokedAt !== undefined;
    // Read before the row: a sandbox that registers between the two reads is then found as registered.
    const mayRegister = !revoked && (await identities.mayRegister(id, thumbprint));
    return { identity: await identities.findBySandbox(id), mayRegister, revoked };
  }

  /**
   * Records a renewed certificate of a registered sandbox. It is valid immediately, and replaces the previous one when it is first seen.
   * Idempotent.
   * @param shown the certificate that it replaces
   * @throws {DroverError} conflict when the sandbox is not registered, and the errors of the store
   */
  async renewed(id: SandboxId, thumbprint: string, shown: string): Promise<void> {
    demand(id, thumbprint);
    const { store, clock } = this.#options;
    if (await store.identities.setNext(id, thumbprint, clock.now() + sandboxLifetimeMs + clockSkewMs, shown)) return;
    throw new DroverError('conflict', `sandbox ${id} has no identity to renew`, {
      hint: 'it registers a new one at its next start',
    });
  }

  /** Records an authenticated call, or a frame on the session (I-10). Batched: never waits, never throws. */
  seen(id: SandboxId, thumbprint: string): void {
    this.#lastSeen.note(id, thumbprint);
  }

  /** Sorted by project and name. */
  async snapshot(): Promise<readonly Identity[]> {
    return await this.#options.store.identities.list();
  }

  /** Removes the row and its tokens, and publishes IdentityEvicted. @returns false if the sandbox had no row */
  async evict(id: SandboxId, why: EvictionCause): Promise<boolean> {
    demandId(id);
    return (await this.#options.store.identities.evict(id, why)) !== undefined;
  }

  /** Contains the sandbox (I-4): evicts it, and refuses every Register until `reinstate`. */
  async revoke(id: SandboxId): Promise<void> {
    demandId(id);
    await this.#options.store.identities.setRevoked(id, true);
  }

  /** Lifts a revocation. The sandbox may register again with its present certificate. */
  async reinstate(id: SandboxId): Promise<boolean> {
    demandId(id);
    return await this.#options.store.identities.setRevoked(id, false);
  }

  /** @returns a token for a reinstated sandbox that holds a certificate of this control plane; undefined if it may not register */
  async secondToken(id: SandboxId, thumbprint: string): Promise<string | undefined> {
    demand(id, thumbprint);
    const { store, clock } = this.#options;
    const token = newSecret();
    const expiresAt = clock.now() + secondTokenMs;
    const isIssued = await store.identities.issueAgain({ hash: hashSecret(token), sandboxId: id, thumbprint, expiresAt });
    return isIssued ? token : undefined;
  }

  /** Evicts the rows of deleted sandboxes (I-12). Publishes ReapDegraded after three failed listings. @returns the number of evicted rows */
  async reap(): Promise<number> {
    let reaped = 0;
    for (;;) {
      const orphans = await this.#orphans();
      if (orphans === undefined) return reaped;
      const evicted = await this.#reap(orphans);
      reaped += evicted;
      if (orphans.length < listPageMax || evicted === 0) return reaped;
    }
  }

  async #register(claim: RegisterClaim): Promise<RegisterOutcome> {
    const { store, clock } = this.#options;
    const names = claimedNames(claim);
    const refusedAlready = (row: Parameters<typeof addressMatches>[1]): boolean => {
      const { refusal } = crossCheck(claim, names, row, 0);
      return refusal !== undefined && refusal !== 'peer-address-mismatch';
    };
    const row = await this.#records.read(claim.sandboxId, claim.hostId, (now) => addressMatches(claim, now) || refusedAlready(now));
    const { checks, refusal } = crossCheck(claim, names, row, clock.now());
    if (refusal !== undefined || names === undefined) return { kind: 'refused', why: refusal ?? 'malformed-name', checks };

    const accessToken = newSecret();
    const { sandboxId, thumbprint, tokenHash } = claim;
    const written = { sandboxId, thumbprint, ...names, tokenHash, accessTokenHash: hashSecret(accessToken) };
    const outcome = await store.identities.register(written);
    const all = [...checks, ...outcomeChecks(outcome, thumbprint, clock.now())];
    return outcome.kind === 'welcome' ? { ...outcome, accessToken, checks: all } : { ...outcome, checks: all };
  }

  async #find(find: (identities: Store['identities']) => Promise<Identity | undefined>): Promise<Identity | undefined> {
    const { store, logger } = this.#options;
    try {
      return await find(store.identities);
    } catch (error) {
      logger.error({ err: error }, 'the registry of identities could not be read');
      return undefined;
    }
  }

  /** I-12: makes three attempts. @returns undefined if all of them fail */
  async #orphans(): Promise<readonly SandboxId[] | undefined> {
    const { store, clock, logger, journal, replica, random } = this.#options;
    const backoff = new Backoff({ baseMs: reapBackoffBaseMs, capMs: reapBackoffCapMs, ...(random === undefined ? {} : { random }) });
    for (let attempt = 1; ; attempt++) {
      try {
        return await store.identities.orphans();
      } catch (error) {
        logger.warn({ err: error, attempt }, 'the registry of identities could not be compared with the sandboxes');
        if (attempt < reapAttempts) await clock.sleep(backoff.nextMs());
        else {
          const { message } = DroverError.from(error);
          journal.publish({ kind: 'identity', type: 'ReapDegraded', subject: replica, data: { attempts: attempt, message } });
          return undefined;
        }
      }
    }
  }

  async #reap(orphans: readonly SandboxId[]): Promise<number> {
    const { store, logger } = this.#options;
    let reaped = 0;
    for (const id of orphans) {
      try {
        if ((await store.identities.evict(id, 'reaped')) !== undefined) reaped++;
      } catch (error) {
        logger.error({ err: error, sandboxId: id }, 'the identity of a deleted sandbox could not be evicted; the next start retries');
      }
    }
    if (reaped > 0) logger.warn({ reaped }, 'evicted the identities of deleted sandboxes');
    return reaped;
  }
}

/** I-8: the arguments come from this server's own code, so a bad one is a programming error. */
function demand(id: SandboxId, thumbprint: string): void {
  demandId(id);
  demandThumbprint(thumbprint);
}

function demandId(id: string): void {
  if (id === '') throw new TypeError('an identity without a sandbox id');
}

function demandThumbprint(thumbprint: string): void {
  if (/^0*$/.test(thumbprint)) throw new TypeError('an identity with a zero thumbprint');
}
