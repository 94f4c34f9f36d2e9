import { DroverError } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import { plan } from '../placement/index.ts';
import type { HostRow, HostStore, Room } from '../store/store.ts';

/**
 * Refuses what is larger than every host there is (L-24), and a host that does not exist. What only has to wait passes.
 * @returns the hosts that it looked at
 * @throws {DroverError} unschedulable, host-not-found
 */
export async function checkPossible(store: HostStore, spec: sandbox.SandboxSpec, room: Room): Promise<readonly HostRow[]> {
  const host = spec.host === '' ? '' : (await store.find(spec.host)).id;
  const hosts = await store.list();
  const decision = plan(hosts, {
    room,
    diskBytes: Number(spec.resources?.diskBytes ?? 0n),
    runtime: spec.runtime,
    labels: spec.hostLabels,
    host,
  });
  if (decision.kind !== 'impossible') return hosts;
  throw new DroverError('unschedulable', `this sandbox can never be placed: ${decision.message}`, {
    hint: 'ask for less, or join a larger host',
  });
}
