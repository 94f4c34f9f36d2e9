import type { Selectable } from 'kysely';

/** The tables, the same in both databases: JSON as text, times as integer milliseconds, booleans as 0 and 1. */
export interface Schema {
  hosts: HostTable;
  sandboxes: SandboxTable;
  sandbox_labels: { sandbox_id: string; key: string; value: string };
  volumes: VolumeTable;
  volume_uses: VolumeUseTable;
  /** Base64, sealed by the secret box. */
  sandbox_secrets: { sandbox_id: string; name: string; sealed: string };
  identities: IdentityTable;
  sandbox_certificates: CertificateTable;
  sandbox_tokens: SandboxTokenTable;
  /** A SandboxView as JSON. */
  sandbox_views: { sandbox_id: string; document: string; updated_at: number };
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
  /** The labels of the join token. They override the labels that the host reports. */
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
  disk_available_bytes: number;
  joined_at: number;
  certificate_expires_at: number;
}

/** The room that a sandbox reserves on its host: none; one slot, when its run has ended and only its files remain; or its whole request. */
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
  /** The generation of the start that the control plane gave up; 0 for none. The sandbox is failed even if its host reports it running. */
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
  hint: string;
  exit_code: number | null;
  /** The name of the signal that ended the main process; empty when none did. */
  exit_signal: string;
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
  /** A StopCause, and the name of the caller's token. Both are empty while the sandbox is to run. */
  stop_cause: string;
  stop_by: string;
  network_cut: number;
  observed_network_cut: number;
  revoked_at: number | null;
  /** JSON: a ContainmentRecord by ContainmentAction. */
  containment: string;
  observed_registration_closed: number;
  remove_on_exit: number;
}

/** One registered sandbox (I-7). */
export interface IdentityTable {
  sandbox_id: string;
  thumbprint: string;
  next_thumbprint: string | null;
  project: string;
  name: string;
  common_name: string;
  /** Of the certificate: see CertificateTable. */
  issue: number;
  request_hash: string;
  registered_at: number;
  last_seen_at: number;
}

/** A certificate that the sandbox may register or use. Registration deletes the certificates of earlier starts. */
export interface CertificateTable {
  thumbprint: string;
  sandbox_id: string;
  /** Rises with every certificate of the sandbox. Not a time, because the clocks of replicas differ (I-17). */
  issue: number;
  /** SHA-256 of the signing request, hex: the same for all certificates of one start. */
  request_hash: string;
  issued_at: number;
  expires_at: number;
}

export interface SandboxTokenTable {
  /** SHA-256, hex. */
  hash: string;
  scope: string;
  sandbox_id: string;
  thumbprint: string;
  issued_at: number;
  /** Null: the token is valid as long as the registration. */
  expires_at: number | null;
  /** When the token registered its certificate. */
  consumed_at: number | null;
}

export interface VolumeTable {
  name: string;
  host_id: string;
  size_bytes: number;
  /** `pending`, `ready`, `deleting`. */
  state: string;
  message: string;
  hint: string;
  created_at: number;
}

/** The volumes that a sandbox uses. */
export interface VolumeUseTable {
  volume: string;
  sandbox_id: string;
}

/** A stale copy: its host holds it, but its sandbox is not placed there. It reserves room until it is fenced (L-8, L-26). */
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
export type StoredIdentity = Selectable<IdentityTable>;
