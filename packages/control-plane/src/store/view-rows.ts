import type { Kysely } from 'kysely';
import type { SandboxId } from '@drover/foundation';
import type { SandboxEvent } from '../events/index.ts';
import { applyEvent, emptyView, isRepeated, type SandboxView } from '../worldview/index.ts';
import { prepared, type Schema, type Tx } from '../database/index.ts';

export const viewById = prepared((db, { id }: { readonly id: string }) =>
  db.selectFrom('sandbox_views').select('document').where('sandbox_id', '=', id),
);

type ViewTable = Schema['sandbox_views'];

const upsert = (db: Kysely<Schema>, rows: ViewTable | readonly ViewTable[]) =>
  db
    .insertInto('sandbox_views')
    .values(rows)
    .onConflict((conflict) =>
      conflict.column('sandbox_id').doUpdateSet((eb) => ({
        document: eb.ref('excluded.document'),
        updated_at: eb.ref('excluded.updated_at'),
      })),
    );

const upsertOne = prepared((db, row: ViewTable) => upsert(db, row));

/** Trusts the stored document: only this module writes it. */
export function viewOf({ document }: { readonly document: string }): SandboxView {
  return JSON.parse(document) as SandboxView;
}

export async function writeViews(tx: Tx, views: readonly SandboxView[]): Promise<void> {
  const rows = views.map((view) => ({ sandbox_id: view.sandboxId, document: JSON.stringify(view), updated_at: tx.now }));
  const [first, ...others] = rows;
  if (first === undefined) return;
  await (others.length === 0 ? upsertOne(tx.db, first) : upsert(tx.db, rows).execute());
}

/** Emits an event about a locked sandbox, and applies it to the sandbox's view in the same transaction (I-35). */
export async function emitViewed(tx: Tx, id: SandboxId, event: SandboxEvent): Promise<void> {
  const { kind, type, data } = event;
  const [stored] = (await viewById(tx.db, { id })).rows;
  const view = stored === undefined ? emptyView(id) : viewOf(stored);
  if (!isRepeated(view, event)) tx.emit({ kind, type, subject: id, data: { ...data } });
  await writeViews(tx, [applyEvent(view, event, tx.now)]);
}
