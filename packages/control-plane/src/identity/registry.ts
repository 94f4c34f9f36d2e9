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
  /** What the store has no transaction for is published here. */
  readonly journal: Pick<Journal, 'publish'>;
  /** Absent: a record that Register waits for is only polled. */
  readonly feed?: Pick<EventFeed, 'on'>;
  /** This replica's name, for what it publishes of itself. */
  readonly replica: string;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Draws the jitter of retries. */
  readonly random?: () => number;
}

const unknown: Lookup = { kind: 'unknown' };

/**
 * The thumbprints of registered sandboxes (I-7 to I-12): the rules, over one transaction each of the store. Only the control plane writes.
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

  /** Writes when sandboxes were last seen, until the signal aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    await this.#lastSeen.run(signal);
  }

  /**
   * A certificate was issued for a start of the sandbox. @returns the single-use bootstrap token that registers it (I-13). A repeated request
   * has another certificate of the same start; one of them registers.
   * @param certificate `csrDer`: its signing request; absent: it is the only certificate of its start
   * @throws {DroverError} sandbox-not-found, and what the store throws
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
      // TLS says when the certificate is over; the token outlives it by what clocks may differ (I-17).
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
    // I-9: whatever failed, the answer is one and the same.
    return identity !== undefined && sameText(identity.commonName, commonName) ? { kind: 'found', identity } : unknown;
  }

  /** Without a check of the CN: a mismatch is the caller's typed outcome. */
  async lookupBySandbox(id: SandboxId): Promise<Lookup> {
    demandId(id);
    const identity = await this.#find(async (identities) => await identities.findBySandbox(id));
    return identity === undefined ? unknown : { kind: 'found', identity };
  }

  /** The rows of those sandboxes that have one. @throws {DroverError} what the store throws */
  async findAll(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, Identity>> {
    return await this.#options.store.identities.findBySandboxes(ids);
  }

  /** @throws {DroverError} what the store throws: the dialer distinguishes a lookup that fails from one without a result */
  async standing(id: SandboxId, thumbprint: string): Promise<Standing> {
    demand(id, thumbprint);
    const { identities, sandboxes } = this.#options.store;
    const row = await sandboxes.get(id);
    const revoked = row?.revokedAt !== undefined;
    // Before the row: one that registers between the two reads is then found as registered.
    const mayRegister = !revoked && (await identities.mayRegister(id, thumbprint));
    return { identity: await identities.findBySandbox(id), mayRegister, revoked };
  }

  /**
   * A renewed certificate was issued for a registered sandbox: it is valid from now on, and alone once it was seen. Repeatable.
   * @param shown the certificate that it replaces, which the sandbox shows until then
   * @throws {DroverError} conflict when the sandbox is not registered, and what the store throws
   */
  async renewed(id: SandboxId, thumbprint: string, shown: string): Promise<void> {
    demand(id, thumbprint);
    const { store, clock } = this.#options;
    if (await store.identities.setNext(id, thumbprint, clock.now() + sandboxLifetimeMs + clockSkewMs, shown)) return;
    throw new DroverError('conflict', `sandbox ${id} has no identity that could be renewed`, {
      hint: 'it gets a new one at its next start',
    });
  }

  /** An authenticated call, or frames on the session (I-10). Batched: never waits, never throws. */
  seen(id: SandboxId, thumbprint: string): void {
    this.#lastSeen.note(id, thumbprint);
  }

  /** Sorted by project and name. */
  async snapshot(): Promise<readonly Identity[]> {
    return await this.#options.store.identities.list();
  }

  /** Removes the row, and its tokens; publishes IdentityEvicted. False when there was none. */
  async evict(id: SandboxId, why: EvictionCause): Promise<boolean> {
    demandId(id);
    return (await this.#options.store.identities.evict(id, why)) !== undefined;
  }

  /** Contained (I-4): evicts, and refuses every Register until it is lifted. */
  async revoke(id: SandboxId): Promise<void> {
    demandId(id);
    await this.#options.store.identities.setRevoked(id, true);
  }

  /** Lifts a revocation; the sandbox may register again with the certificate that it has. */
  async reinstate(id: SandboxId): Promise<boolean> {
    demandId(id);
    return await this.#options.store.identities.setRevoked(id, false);
  }

  /** A token for a reinstated sandbox that holds a certificate of this control plane; undefined when it may not have one. */
  async secondToken(id: SandboxId, thumbprint: string): Promise<string | undefined> {
    demand(id, thumbprint);
    const { store, clock } = this.#options;
    const token = newSecret();
    const expiresAt = clock.now() + secondTokenMs;
    const given = await store.identities.issueAgain({ hash: hashSecret(token), sandboxId: id, thumbprint, expiresAt });
    return given ? token : undefined;
  }

  /** Evicts the rows of sandboxes that no longer exist (I-12). Publishes ReapDegraded after three failed listings. @returns how many */
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

  /** I-12: tried three times; undefined when that was not enough. */
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
        logger.error(
          { err: error, sandboxId: id },
          'the identity of a sandbox that is gone could not be evicted; the next start tries again',
        );
      }
    }
    if (reaped > 0) logger.warn({ reaped }, 'evicted identities whose sandboxes are gone');
    return reaped;
  }
}

/** I-8: these come from this side's own code, never from outside. */
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
