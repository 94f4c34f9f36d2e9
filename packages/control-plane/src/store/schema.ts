import type { Selectable } from 'kysely';

/** The tables, as both databases have them: JSON as text, times as integer milliseconds, booleans as 0 and 1. */
export interface Schema {
  hosts: HostTable;
  sandboxes: SandboxTable;
  sandbox_labels: { sandbox_id: string; key: string; value: string };
  /** Base64, sealed by the secret box. */
  sandbox_secrets: { sandbox_id: string; name: string; sealed: string };
  strays: StrayTable;
  events: EventTable;
  event_counter: { id: number; last: number };
  join_tokens: { hash: string; expires_at: number; uses_left: number; labels: string };
  join_token_uses: { hash: string; host_id: string };
  api_tokens: { hash: string; name: string; created_at: number };
  idempotency: IdempotencyTable;
}

export interface HostTable {
  id: string;
  name: string;
  scheduling: string;
  removed_at: number | null;
  /** What the join token gave; they win over the host's own. */
  join_labels: string;
  labels: string;
  zone: string;
  cpu_millis: number;
  memory_bytes: number;
  disk_bytes: number;
  slots: number;
  reserved_cpu_millis: number;
  reserved_memory_bytes: number;
  reserved_slots: number;
  runtimes: string;
  agent_version: string;
  boot_id: string;
  epoch: number;
  owner: string;
  connected: number;
  down_since: number | null;
  down_reason: string;
  last_seen_at: number;
  load_milli: number;
  memory_available_bytes: number;
  joined_at: number;
  certificate_expires_at: number;
}

/** What a sandbox holds of its host: nothing; a slot, when it is over and only its files are left; or its whole request. */
export type Hold = 'nothing' | 'slot' | 'all';

export interface SandboxTable {
  id: string;
  project: string;
  name: string;
  spec: string;
  labels: string;
  desired: string;
  generation: number;
  start_generation: number;
  placed_generation: number;
  /** The generation that the control plane itself gave up; 0 for none. What a host sees running of it is still failed. */
  given_up_generation: number;
  cpu_millis: number;
  memory_bytes: number;
  slots: number;
  host_id: string | null;
  hold: Hold;
  pending_reason: string;
  pending_message: string;
  observed: string | null;
  observed_generation: number;
  observed_sequence: number;
  reason: string;
  message: string;
  exit_code: number | null;
  out_of_memory: number;
  address: string;
  runtime: string;
  image_digest: string;
  start_count: number;
  lost_since: number | null;
  created_at: number;
  updated_at: number;
  started_at: number | null;
  finished_at: number | null;
  deleted_at: number | null;
  expires_at: number | null;
  stop_grace_ms: number;
}

/** A copy that a host still holds of a sandbox that is not placed there: counted until it is fenced (L-8, L-26). */
export interface StrayTable {
  host_id: string;
  sandbox_id: string;
  cpu_millis: number;
  memory_bytes: number;
  slots: number;
}

export interface EventTable {
  id: number;
  time: number;
  kind: string;
  type: string;
  subject: string;
  data: string;
}

export interface IdempotencyTable {
  key: string;
  method: string;
  request_hash: string;
  /** Base64; null only within the transaction that writes it. */
  response: string | null;
  created_at: number;
}

/** Rows as they are read. */
export type StoredSandbox = Selectable<SandboxTable>;
export type StoredHost = Selectable<HostTable>;
