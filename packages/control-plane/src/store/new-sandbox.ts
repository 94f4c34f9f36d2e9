import { specText } from './rows.ts';
import type { SandboxDraft } from './store.ts';
import type { StoredSandbox } from './schema.ts';

/** The row of a sandbox that nobody has placed yet: wanted running, seen nowhere. */
export function newSandbox(draft: SandboxDraft, now: number): StoredSandbox {
  const ttlMs = Number(draft.spec.ttlSeconds) * 1000;
  return {
    id: draft.id,
    project: draft.project,
    name: draft.name,
    spec: specText(draft.spec),
    labels: JSON.stringify(draft.labels),
    desired: 'running',
    generation: 1,
    start_generation: 1,
    placed_generation: 1,
    given_up_generation: 0,
    cpu_millis: draft.request.cpuMillis,
    memory_bytes: draft.request.memoryBytes,
    slots: draft.request.slots,
    host_id: null,
    hold: 'nothing',
    pending_reason: '',
    pending_message: '',
    observed: null,
    observed_generation: 0,
    observed_sequence: 0,
    reason: '',
    message: '',
    exit_code: null,
    out_of_memory: 0,
    address: '',
    runtime: '',
    image_digest: '',
    start_count: 0,
    lost_since: null,
    created_at: now,
    updated_at: now,
    started_at: null,
    finished_at: null,
    deleted_at: null,
    expires_at: ttlMs === 0 ? null : now + ttlMs,
    stop_grace_ms: draft.spec.stopGraceMs,
    network_cut: 0,
    observed_network_cut: 0,
    revoked_at: null,
    killed: 0,
    remove_on_exit: draft.spec.removeOnExit ? 1 : 0,
  };
}
