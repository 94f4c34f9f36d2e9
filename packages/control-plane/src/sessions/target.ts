import type { SandboxRow } from '../model/index.ts';

/** Has an init that can be reached, as far as the store knows: one that starts is about to listen, and the host's end waits for it. */
export function isDialable(row: SandboxRow): boolean {
  return (
    row.hostId !== undefined &&
    row.deletedAt === undefined &&
    row.lostSince === undefined &&
    (row.observed === 'starting' || row.observed === 'running' || row.observed === 'stopping')
  );
}

/** Is meant to have a session: one that ends otherwise has ended as it should (I-24). */
export function isToRun(row: SandboxRow | undefined): row is SandboxRow {
  return row !== undefined && row.desired === 'running' && isDialable(row);
}
