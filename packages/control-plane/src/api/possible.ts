import { DroverError } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import { plan } from '../placement/index.ts';
import type { HostStore, Room } from '../store/store.ts';

/**
 * Refuses what is larger than every host there is (L-24), and a host that does not exist. What only has to wait passes.
 * @throws {DroverError} unschedulable, host-not-found
 */
export async function checkPossible(hosts: HostStore, spec: sandbox.SandboxSpec, room: Room): Promise<void> {
  const host = spec.host === '' ? '' : (await hosts.find(spec.host)).id;
  const decision = plan(await hosts.list(), {
    room,
    diskBytes: Number(spec.resources?.diskBytes ?? 0n),
    runtime: spec.runtime,
    labels: spec.hostLabels,
    host,
  });
  if (decision.kind !== 'impossible') return;
  throw new DroverError('unschedulable', `this sandbox can never be placed: ${decision.message}`, {
    hint: 'ask for less, or join a larger host',
  });
}
