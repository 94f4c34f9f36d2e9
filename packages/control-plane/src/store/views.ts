import type { SandboxId } from '@drover/foundation';
import type { EventDraft } from '../events/index.ts';
import * as limits from '../limits.ts';
import type { SandboxView } from '../worldview/index.ts';
import { lockSandboxes } from './change.ts';
import type { Database } from '../database/index.ts';

import { viewById, viewOf, writeViews } from './view-rows.ts';

export class ViewStore {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** With `lock`, within `together`: no other transaction changes these views until this one ends. */
  async get(ids: readonly SandboxId[], options: { readonly lock?: boolean } = {}): Promise<ReadonlyMap<SandboxId, SandboxView>> {
    const views = new Map<SandboxId, SandboxView>();
    const sorted = [...new Set(ids)].sort();
    for (let i = 0; i < sorted.length; i += limits.rowsPerStatement) {
      const batch = sorted.slice(i, i + limits.rowsPerStatement);
      // A view may have no row yet, so the lock is on the sandbox's row.
      if (options.lock === true) await this.#database.transact(async (tx) => await lockSandboxes(this.#database, tx, { ids: batch }));
      const { db } = this.#database;
      const [id = ''] = batch;
      const { rows } =
        batch.length === 1
          ? await viewById(db, { id })
          : { rows: await db.selectFrom('sandbox_views').select('document').where('sandbox_id', 'in', batch).execute() };
      for (const view of rows.map(viewOf)) views.set(view.sandboxId, view);
    }
    return views;
  }

  /** Writes views and the events that changed them in one transaction. */
  async put(views: readonly SandboxView[], events: readonly EventDraft[]): Promise<void> {
    await this.#database.transact(async (tx) => {
      for (const event of events) tx.emit(event);
      // The last view of each sandbox counts. Sorted, so that all replicas lock the rows in the same order.
      const newest = [...new Map(views.map((view) => [view.sandboxId, view])).values()].sort((a, b) =>
        a.sandboxId < b.sandboxId ? -1 : 1,
      );
      for (let i = 0; i < newest.length; i += limits.rowsPerStatement) {
        const batch = newest.slice(i, i + limits.rowsPerStatement);
        // Locked, so that none is written after its sandbox was deleted (I-11).
        const rows = await lockSandboxes(this.#database, tx, { ids: batch.map((view) => view.sandboxId) });
        const kept = new Set(rows.filter((row) => row.deleted_at === null).map((row) => row.id));
        await writeViews(
          tx,
          batch.filter((view) => kept.has(view.sandboxId)),
        );
      }
    });
  }
}
