import type { Clock, Logger, SandboxId } from '@drover/foundation';
import * as limits from '../limits.ts';
import { containmentsOf, runIsOver, type SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';

export interface UpkeepOptions {
  readonly store: Store;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Compares the sessions of this replica with the registry (I-11). */
  readonly compareSessions?: () => Promise<void>;
  /** Makes connected hosts create and remove volumes. */
  readonly settleVolumes?: () => Promise<void>;
  /** How long a host may be down before its sandboxes are lost (L-26). Milliseconds; default 60 s. */
  readonly lostGraceMs?: number;
  /** How long a host without a heartbeat at any replica stays ready. Milliseconds; default 90 s. */
  readonly orphanedHostMs?: number;
  /** Default: `retainedEvents`. */
  readonly retainedEvents?: number;
  /** Default: `retainedDeleted`. */
  readonly retainedDeleted?: number;
}

/**
 * Periodic tasks: ends the sessions of evicted identities, settles volumes, marks silent hosts down and their sandboxes lost, stops sandboxes
 * past their TTL, removes finished ones (--rm), and deletes old rows.
 */
export class Upkeep {
  readonly #options: UpkeepOptions;

  constructor(options: UpkeepOptions) {
    this.#options = options;
  }

  /** Runs the tasks until the signal aborts. Any number of replicas may run them: every change is conditional. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, logger, compareSessions = async () => undefined, settleVolumes = async () => undefined } = this.#options;
    const tasks = [
      compareSessions,
      settleVolumes,
      () => this.#silent(),
      () => this.#lost(),
      () => this.#expired(),
      () => this.#finished(),
      () => this.#trim(),
    ];
    while (!signal.aborted) {
      for (const task of tasks) {
        try {
          await task();
        } catch (error) {
          if (!signal.aborted) logger.error({ err: error }, 'an upkeep task failed; retrying');
        }
      }
      // Only the signal rejects the sleep, and the loop checks that signal.
      await clock.sleep(limits.upkeepMs, signal).catch(() => undefined);
    }
  }

  /** L-10: the replica that held the host's stream may have failed together with the host. A later heartbeat makes it ready again (L-9). */
  async #silent(): Promise<void> {
    const { store, clock, logger, orphanedHostMs = limits.orphanedHostMs } = this.#options;
    const since = clock.now() - orphanedHostMs;
    for (const host of await store.hosts.list()) {
      if (!host.connected || host.lastSeenAt >= since) continue;
      await store.hosts.markDown(host.id, host.epoch, 'the host is silent, and so is the control plane that held its stream');
      logger.warn({ hostId: host.id, owner: host.owner }, 'host marked down: no replica receives its heartbeats');
    }
  }

  async #lost(): Promise<void> {
    const { store, clock, logger, lostGraceMs = limits.lostGraceMs } = this.#options;
    for (const row of await store.sandboxes.markLost(clock.now() - lostGraceMs)) {
      logger.warn({ sandboxId: row.id, hostId: row.hostId }, 'sandbox lost: its host is down');
    }
  }

  /** The time is stored, so a restart of the control plane does not extend it. */
  async #expired(): Promise<void> {
    const { store, clock, logger } = this.#options;
    for (const row of await store.sandboxes.expired(clock.now())) {
      if (runIsOver(row)) continue;
      await this.#stop(row.id);
      logger.info({ sandboxId: row.id }, 'sandbox stopped at the end of its time to live');
    }
  }

  /** R-2, --rm: after the delay, attached clients have read the output, and `drover run` has usually removed the sandbox already. */
  async #finished(): Promise<void> {
    const { store, clock, logger } = this.#options;
    const before = clock.now() - limits.removeOnExitMs;
    for (const { id } of await store.sandboxes.finished(before)) {
      // A sandbox that has been started again since the query is not removed.
      const when = (row: SandboxRow): boolean => runIsOver(row) && row.updatedAt <= before && containmentsOf(row).length === 0;
      const { desired } = await store.sandboxes.setDesired(id, 'deleted', { when });
      if (desired === 'deleted') logger.info({ sandboxId: id }, 'sandbox removed after its command ended (--rm)');
    }
  }

  async #stop(id: SandboxId): Promise<void> {
    const { store, logger } = this.#options;
    try {
      await store.sandboxes.setDesired(id, 'stopped', { cause: 'ttl' });
    } catch (error) {
      // The sandbox was deleted between the two calls.
      logger.debug({ err: error, sandboxId: id }, 'a sandbox could not be stopped at the end of its time to live');
    }
  }

  async #trim(): Promise<void> {
    const { store, clock, retainedEvents = limits.retainedEvents, retainedDeleted = limits.retainedDeleted } = this.#options;
    const now = clock.now();
    await store.events.trim(retainedEvents);
    await store.idempotency.trim(now - limits.idempotencyRetentionMs, limits.retainedIdempotencyKeys);
    for (let batch = 0; batch < limits.trimBatches; batch++) {
      const dropped = await store.sandboxes.trimDeleted(now - limits.deletedRetentionMs, retainedDeleted);
      if (dropped < limits.rowsPerStatement) break;
    }
    await store.tokens.trimJoin(now - limits.expiredTokenRetentionMs);
    await store.identities.trimTokens(now - limits.expiredTokenRetentionMs);
  }
}
