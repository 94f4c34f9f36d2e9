import { formatBytes } from '@drover/foundation';
import { hostState, type HostRow, type Room, type SandboxRow } from '../model/index.ts';

export interface PlacementRequest {
  readonly room: Room;
  /** The maximum size of the sandbox's disk. It is not reserved; only a host with a smaller disk is excluded. */
  readonly diskBytes: number;
  /** Empty: any. */
  readonly runtime: string;
  readonly labels: Readonly<Record<string, string>>;
  /** A host id or name; empty: any. */
  readonly host: string;
  /** The host with the sandbox's files, the only one where it can start again. The sandbox already holds its slot there. */
  readonly onHost?: string;
}

export type Plan =
  | { readonly kind: 'host'; readonly hostId: HostRow['id'] }
  /** No host can take the sandbox now; one may later. */
  | { readonly kind: 'unschedulable'; readonly message: string; readonly why: readonly HostRefusal[] }
  /** The sandbox is larger than every host, so the request is refused (L-24). */
  | { readonly kind: 'impossible'; readonly message: string; readonly why: readonly HostRefusal[] };

export interface HostRefusal {
  readonly host: string;
  readonly why: string;
}

type Verdict = { readonly kind: 'fits' } | { readonly kind: 'not-now' | 'never'; readonly why: string };

/** The columns of a sandbox that placement uses. */
export function placementRequest(row: SandboxRow): PlacementRequest {
  return {
    room: row.request,
    diskBytes: Number(row.spec.resources?.diskBytes ?? 0n),
    runtime: row.spec.runtime,
    labels: row.spec.hostLabels,
    host: row.spec.host,
    ...(row.hostId === undefined ? {} : { onHost: row.hostId }),
  };
}

/**
 * Chooses a host (L-24) as a function of a snapshot. Filters by readiness, cordon, labels, runtime and room, then spreads: it chooses the host
 * whose scarcest resource would be least reserved. The smaller id breaks a tie, so equal snapshots lead to equal plans.
 */
export function plan(hosts: readonly HostRow[], request: PlacementRequest): Plan {
  const candidates = hosts.filter((host) => host.removedAt === undefined);
  const verdicts = candidates.map((host) => ({ host, verdict: judge(host, request) }));
  const fitting = verdicts
    .filter(({ verdict }) => verdict.kind === 'fits')
    .map(({ host }) => ({ host, score: reservedAfter(host, request) }));
  fitting.sort((a, b) => a.score - b.score || (a.host.id < b.host.id ? -1 : 1));
  const best = fitting[0];
  if (best !== undefined) return { kind: 'host', hostId: best.host.id };

  const why = verdicts.map(({ host, verdict }) => ({ host: host.name, why: verdict.kind === 'fits' ? '' : verdict.why }));
  if (candidates.length === 0) {
    return { kind: 'unschedulable', message: 'no host has joined yet; `drover host token` prints how to join one', why };
  }
  const list = why.map((refusal) => `${refusal.host}: ${refusal.why}`).join('; ');
  return verdicts.every(({ verdict }) => verdict.kind === 'never')
    ? { kind: 'impossible', message: `it is larger than every host (${list})`, why }
    : { kind: 'unschedulable', message: `no host can take it now (${list})`, why };
}

function judge(host: HostRow, request: PlacementRequest): Verdict {
  const notNow = (why: string): Verdict => ({ kind: 'not-now', why });
  if (request.onHost !== undefined && request.onHost !== host.id) return notNow('its files are on another host');
  if (request.host !== '' && request.host !== host.id && request.host !== host.name) return notNow('another host was asked for');
  const state = hostState(host);
  // A host reports its capacity when it registers, so the capacity of a joining host is unknown.
  if (state === 'joining') return notNow('it has not connected yet');
  const tooSmall = lacks(request.room, host.capacity, 'has') ?? lacksDisk(request, host);
  if (tooSmall !== undefined) return { kind: 'never', why: tooSmall };
  if (state !== 'ready' && !(state === 'cordoned' && request.onHost === host.id)) return notNow(`it is ${state}`);
  for (const [key, value] of Object.entries(request.labels)) {
    if (host.labels[key] !== value) return notNow(`it does not carry the label ${key}=${value}`);
  }
  if (request.runtime !== '' && !host.runtimes.includes(request.runtime)) return notNow(`it has no ${request.runtime} runtime`);
  const noRoom = lacks(request.room, allocatable(host, request), 'has free');
  return noRoom === undefined ? { kind: 'fits' } : notNow(noRoom);
}

/** The room that can still be reserved; never below zero (L-8). */
export function allocatable(host: HostRow, request?: PlacementRequest): Room {
  const heldSlots = request?.onHost === host.id ? request.room.slots : 0;
  return {
    cpuMillis: Math.max(0, host.capacity.cpuMillis - host.reserved.cpuMillis),
    memoryBytes: Math.max(0, host.capacity.memoryBytes - host.reserved.memoryBytes),
    slots: Math.max(0, host.capacity.slots - host.reserved.slots + heldSlots),
  };
}

function lacks(request: Room, room: Room, verb: string): string | undefined {
  if (request.cpuMillis > room.cpuMillis) return `it ${verb} ${room.cpuMillis / 1000} CPUs of the ${request.cpuMillis / 1000} wanted`;
  if (request.memoryBytes > room.memoryBytes) {
    return `it ${verb} ${formatBytes(room.memoryBytes)} of memory of the ${formatBytes(request.memoryBytes)} wanted`;
  }
  return request.slots > room.slots ? 'it has no place for another sandbox' : undefined;
}

function lacksDisk({ diskBytes }: PlacementRequest, { capacity }: HostRow): string | undefined {
  if (diskBytes <= capacity.diskBytes) return undefined;
  return `it has ${formatBytes(capacity.diskBytes)} of disk of the ${formatBytes(diskBytes)} wanted`;
}

/** The reserved fraction of the host's scarcest resource, 0 to 1, if the sandbox is placed there. */
function reservedAfter(host: HostRow, request: PlacementRequest): number {
  const fraction = (reserved: number, more: number, capacity: number): number => (capacity === 0 ? 0 : (reserved + more) / capacity);
  return Math.max(
    fraction(host.reserved.cpuMillis, request.room.cpuMillis, host.capacity.cpuMillis),
    fraction(host.reserved.memoryBytes, request.room.memoryBytes, host.capacity.memoryBytes),
    fraction(host.reserved.slots, request.room.slots, host.capacity.slots),
  );
}
