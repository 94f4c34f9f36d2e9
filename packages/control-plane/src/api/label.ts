import type { SandboxRow } from '../store/store.ts';

/** The name by which people know a sandbox: `name`, or `project/name`. */
export function labelOf(row: Pick<SandboxRow, 'project' | 'name'>): string {
  return row.project === '' ? row.name : `${row.project}/${row.name}`;
}
