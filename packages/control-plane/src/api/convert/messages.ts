import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { Logger } from '@drover/foundation';
import { api, desiredStates, hostStates, link, sandboxStates, type HostStateName } from '@drover/protocol';
import { publicErrorToWire } from '@drover/protocol/rpc';
import type { WatchedEvent } from '../../feed/index.ts';
import { hostState, sandboxState, type HostRow, type SandboxRow } from '../../model/index.ts';
import { containmentToWire, identityStatusToWire, initToWire, sessionToWire, type SandboxFacts } from './status.ts';

export function sandboxToWire(row: SandboxRow, facts: SandboxFacts): api.Sandbox {
  const shown = sandboxState(row);
  const message = create(api.SandboxSchema, {
    id: row.id,
    project: row.project,
    name: row.name,
    spec: row.spec,
    desiredState: desiredStates.value(row.desired),
    generation: BigInt(row.generation),
    state: sandboxStates.value(shown.state),
    reason: shown.reason,
    message: shown.message,
    hint: shown.hint,
    hostId: row.hostId ?? '',
    hostName: facts.host?.name ?? '',
    address: row.address,
    outOfMemory: row.outOfMemory,
    exitSignal: row.exitSignal,
    createdAt: timestampFromMs(row.createdAt),
    labels: { ...row.labels },
    runtime: row.runtime,
    imageDigest: row.imageDigest,
    startCount: BigInt(row.startCount),
    session: sessionToWire(row, facts),
    identity: identityStatusToWire(row, facts),
    init: initToWire(row, facts),
    containment: containmentToWire(row),
  });
  if (row.exitCode !== undefined) message.exitCode = row.exitCode;
  if (row.startedAt !== undefined) message.startedAt = timestampFromMs(row.startedAt);
  if (row.finishedAt !== undefined) message.finishedAt = timestampFromMs(row.finishedAt);
  return message;
}

export function hostToWire(row: HostRow): api.Host {
  const state = hostState(row);
  return create(api.HostSchema, {
    id: row.id,
    name: row.name,
    state: hostStates.value(state),
    reason: hostReason(row, state),
    labels: { ...row.labels },
    zone: row.zone,
    capacity: create(link.CapacitySchema, {
      cpuMillis: row.capacity.cpuMillis,
      memoryBytes: BigInt(row.capacity.memoryBytes),
      diskBytes: BigInt(row.capacity.diskBytes),
      slots: row.capacity.slots,
    }),
    // L-8: never below zero, even if the host holds more than it offers.
    allocatable: create(link.CapacitySchema, {
      cpuMillis: Math.max(0, row.capacity.cpuMillis - row.reserved.cpuMillis),
      memoryBytes: BigInt(Math.max(0, row.capacity.memoryBytes - row.reserved.memoryBytes)),
      diskBytes: BigInt(row.capacity.diskBytes),
      slots: Math.max(0, row.capacity.slots - row.reserved.slots),
    }),
    runtimes: [...row.runtimes],
    agentVersion: row.agentVersion,
    joinedAt: timestampFromMs(row.joinedAt),
    ...(row.lastSeenAt > 0 ? { lastSeenAt: timestampFromMs(row.lastSeenAt) } : {}),
    loadMilli: row.loadMilli,
    memoryAvailableBytes: BigInt(row.memoryAvailableBytes),
    diskAvailableBytes: BigInt(row.diskAvailableBytes),
    // Each placed sandbox that is not deleted holds one slot.
    sandboxes: row.reserved.slots,
    ...(row.certificateExpiresAt > 0 ? { certificateExpiresAt: timestampFromMs(row.certificateExpiresAt) } : {}),
  });
}

function hostReason(row: HostRow, state: HostStateName): string {
  if (state === 'joining') return 'it has joined, and has not connected yet';
  if (state !== 'down') return '';
  const why = row.downReason === '' ? 'it is not connected' : row.downReason;
  return row.scheduling === 'open' ? why : `${why}; it was ${row.scheduling} before`;
}

export function eventToWire(event: WatchedEvent): api.Event {
  return create(api.EventSchema, {
    id: BigInt(event.id),
    time: timestampFromMs(event.time),
    kind: event.kind,
    type: event.type,
    subject: event.subject,
    dataJson: JSON.stringify(event.data),
    lost: BigInt(event.lost),
  });
}

/** The error of a call to a host, for a response that reports failures host by host. */
export function hostError({ logger }: { readonly logger: Logger }, { id }: HostRow, thrown: unknown): link.Error {
  return publicErrorToWire(thrown, logger, { hostId: id });
}

export function hostFailure(context: { readonly logger: Logger }, host: HostRow, thrown: unknown): api.HostFailure {
  return create(api.HostFailureSchema, { hostId: host.id, hostName: host.name, error: hostError(context, host, thrown) });
}
