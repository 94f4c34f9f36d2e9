import { formatBytes } from '@drover/foundation';
import { hostState, type HostRow, type Room, type SandboxRow } from '../model/index.ts';

export interface PlacementRequest {
  readonly room: Room;
  /** What its disk may grow to. It is not reserved: only a host whose disk is smaller cannot take it. */
  readonly diskBytes: number;
  /** Empty: any. */
  readonly runtime: string;
  readonly labels: Readonly<Record<string, string>>;
  /** A host id or name; empty: any. */
  readonly host: string;
  /** The host that its files are on: the only one where it can start again. It counts there as one slot already. */
  readonly onHost?: string;
}

export type Plan =
  | { readonly kind: 'host'; readonly hostId: HostRow['id'] }
  /** It may fit later. */
  | { readonly kind: 'unschedulable'; readonly message: string; readonly why: readonly HostRefusal[] }
  /** It is larger than every host there is: to be refused when it is asked for (L-24). */
  | { readonly kind: 'impossible'; readonly message: string; readonly why: readonly HostRefusal[] };

export interface HostRefusal {
  readonly host: string;
  readonly why: string;
}

type Verdict = { readonly kind: 'fits' } | { readonly kind: 'not-now' | 'never'; readonly why: string };

/** What placement looks at in a sandbox. */
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
 * Chooses a host (L-24): a function of a snapshot. Filters by readiness, cordon, labels, runtime and room, then spreads: the host
 * whose scarcest resource would be least reserved. Ties go to the smaller id, so equal snapshots give equal plans.
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
  // Capacity is what a host says when it registers; before that nothing is known of it.
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

/** What may still be given out; never below zero (L-8). */
export function allocatable(host: HostRow, request?: PlacementRequest): Room {
  const heldSlots = request?.onHost === host.id ? request.room.slots : 0;
  return {
    cpuMillis: Math.max(0, host.capacity.cpuMillis - host.reserved.cpuMillis),
    memoryBytes: Math.max(0, host.capacity.memoryBytes - host.reserved.memoryBytes),
    slots: Math.max(0, host.capacity.slots - host.reserved.slots + heldSlots),
  };
}

function lacks(wanted: Room, there: Room, verb: string): string | undefined {
  if (wanted.cpuMillis > there.cpuMillis) return `it ${verb} ${there.cpuMillis / 1000} CPUs of the ${wanted.cpuMillis / 1000} wanted`;
  if (wanted.memoryBytes > there.memoryBytes) {
    return `it ${verb} ${formatBytes(there.memoryBytes)} of memory of the ${formatBytes(wanted.memoryBytes)} wanted`;
  }
  return wanted.slots > there.slots ? 'it has no place for another sandbox' : undefined;
}

function lacksDisk({ diskBytes }: PlacementRequest, { capacity }: HostRow): string | undefined {
  if (diskBytes <= capacity.diskBytes) return undefined;
  return `it has ${formatBytes(capacity.diskBytes)} of disk of the ${formatBytes(diskBytes)} wanted`;
}

/** The reserved fraction of the host's scarcest resource, with the sandbox on it: 0 to 1. */
function reservedAfter(host: HostRow, request: PlacementRequest): number {
  const fraction = (reserved: number, more: number, capacity: number): number => (capacity === 0 ? 0 : (reserved + more) / capacity);
  return Math.max(
    fraction(host.reserved.cpuMillis, request.room.cpuMillis, host.capacity.cpuMillis),
    fraction(host.reserved.memoryBytes, request.room.memoryBytes, host.capacity.memoryBytes),
    fraction(host.reserved.slots, request.room.slots, host.capacity.slots),
  );
}
