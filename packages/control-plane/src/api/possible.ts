import { DroverError, type HostId } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import { plan } from '../placement/index.ts';
import type { HostRow, HostStore, Room } from '../store/store.ts';

export interface Possible {
  /** The hosts as they were looked at. */
  readonly hosts: readonly HostRow[];
  /** The one that can take it now; undefined when it has to wait. */
  readonly hostId: HostId | undefined;
}

/**
 * Refuses what is larger than every host there is (L-24), and a host that does not exist. What only has to wait passes.
 * @throws {DroverError} unschedulable, host-not-found
 */
export async function checkPossible(store: HostStore, spec: sandbox.SandboxSpec, room: Room): Promise<Possible> {
  const host = spec.host === '' ? '' : (await store.find(spec.host)).id;
  const hosts = await store.list();
  const decision = plan(hosts, {
    room,
    diskBytes: Number(spec.resources?.diskBytes ?? 0n),
    runtime: spec.runtime,
    labels: spec.hostLabels,
    host,
  });
  if (decision.kind !== 'impossible') return { hosts, hostId: decision.kind === 'host' ? decision.hostId : undefined };
  throw new DroverError('unschedulable', `this sandbox can never be placed: ${decision.message}`, {
    hint: 'ask for less, or join a larger host',
  });
}
