import { fromJsonString, toJsonString } from '@bufbuild/protobuf';
import type { Selectable } from 'kysely';
import type { HostId, Name, Project, SandboxId } from '@drover/foundation';
import { sandbox, sandboxStates } from '@drover/protocol';
import type { HostTable, SandboxTable } from '../database/index.ts';
import type { DesiredState, HostRow, ObservedState, SandboxRow, StopCause } from '../model/index.ts';
import type { SandboxStateName } from '@drover/protocol';

const optional = <T>(value: T | null): T | undefined => value ?? undefined;

/** Trusts the stored columns: they were checked when they were written. */
export function hostRow(row: Selectable<HostTable>): HostRow {
  return {
    id: row.id as HostId,
    name: row.name,
    scheduling: row.scheduling as HostRow['scheduling'],
    removedAt: optional(row.removed_at),
    labels: { ...parseMap(row.labels), ...parseMap(row.join_labels) },
    zone: row.zone,
    capacity: { cpuMillis: row.cpu_millis, memoryBytes: row.memory_bytes, slots: row.slots, diskBytes: row.disk_bytes },
    reserved: { cpuMillis: row.reserved_cpu_millis, memoryBytes: row.reserved_memory_bytes, slots: row.reserved_slots },
    runtimes: JSON.parse(row.runtimes) as string[],
    agentVersion: row.agent_version,
    bootId: row.boot_id,
    epoch: row.epoch,
    // The table keeps the owner of a host that is down: a host that was only silent continues on the same stream (L-9).
    owner: row.connected === 1 ? row.owner : '',
    connected: row.connected === 1,
    downSince: optional(row.down_since),
    downReason: row.down_reason,
    lastSeenAt: row.last_seen_at,
    loadMilli: row.load_milli,
    memoryAvailableBytes: row.memory_available_bytes,
    diskAvailableBytes: row.disk_available_bytes,
    joinedAt: row.joined_at,
    certificateExpiresAt: row.certificate_expires_at,
  };
}

export function sandboxRow(row: Selectable<SandboxTable>): SandboxRow {
  return rowWithSpec(row, undefined);
}

/** @param spec the parsed spec of the row; undefined: it is parsed when it is first read */
export function rowWithSpec(row: Selectable<SandboxTable>, spec: sandbox.SandboxSpec | undefined): SandboxRow {
  return {
    id: row.id as SandboxId,
    project: row.project as Project,
    name: row.name as Name,
    // Parsed lazily: it is the most expensive column, and most callers do not read it.
    get spec() {
      return (spec ??= fromJsonString(sandbox.SandboxSpecSchema, row.spec, { ignoreUnknownFields: true }));
    },
    labels: parseMap(row.labels),
    desired: row.desired as DesiredState,
    generation: row.generation,
    startGeneration: row.start_generation,
    placedGeneration: row.placed_generation,
    request: { cpuMillis: row.cpu_millis, memoryBytes: row.memory_bytes, slots: row.slots },
    hostId: optional(row.host_id) as HostId | undefined,
    pendingReason: row.pending_reason,
    pendingMessage: row.pending_message,
    observed: optional(row.observed) as ObservedState | undefined,
    observedGeneration: row.observed_generation,
    observedSequence: row.observed_sequence,
    reason: row.reason,
    message: row.message,
    hint: row.hint,
    exitCode: optional(row.exit_code),
    exitSignal: row.exit_signal,
    outOfMemory: row.out_of_memory === 1,
    address: row.address,
    runtime: row.runtime,
    imageDigest: row.image_digest,
    startCount: row.start_count,
    lostSince: optional(row.lost_since),
    createdAt: row.created_at,
    updatedAt: row.updated_at,
    startedAt: optional(row.started_at),
    finishedAt: optional(row.finished_at),
    deletedAt: optional(row.deleted_at),
    stopGraceMs: row.stop_grace_ms,
    stopCause: row.stop_cause === '' ? undefined : (row.stop_cause as StopCause),
    stopBy: row.stop_by,
    networkCut: row.network_cut === 1,
    observedNetworkCut: row.observed_network_cut === 1,
    revokedAt: optional(row.revoked_at),
    observedRegistrationClosed: row.observed_registration_closed === 1,
    containment: row.containment === '{}' ? {} : (JSON.parse(row.containment) as SandboxRow['containment']),
  };
}

export function specText(spec: sandbox.SandboxSpec): string {
  return toJsonString(sandbox.SandboxSpecSchema, spec);
}

export function parseMap(text: string): Record<string, string> {
  return JSON.parse(text) as Record<string, string>;
}

/** The observed state; undefined for a state that only the control plane assigns, which no host may report. */
export function observedState(state: sandbox.SandboxState): ObservedState | undefined {
  const name = sandboxStates.name(state);
  return name !== undefined && isObserved(name) ? name : undefined;
}

function isObserved(name: SandboxStateName): name is ObservedState {
  return name !== 'pending' && name !== 'scheduled' && name !== 'lost' && name !== 'deleting' && name !== 'deleted';
}
