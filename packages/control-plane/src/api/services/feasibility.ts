import { DroverError, type HostId } from '@drover/foundation';
import type { SandboxSpec } from '@drover/spec/sandbox';
import { defaultRequestCpuMillis, defaultRequestMemoryBytes, maxNamedHosts } from '../../limits.ts';
import { plan } from '../../placement/index.ts';
import type { HostRow, Room } from '../../model/index.ts';
import type { HostStore } from '../../store/index.ts';

export interface Feasibility {
  /** The hosts that the decision is based on. */
  readonly hosts: readonly HostRow[];
  /** The host that can take it now, or why it has to wait. */
  readonly place: HostId | { readonly unschedulable: string };
}

/**
 * Refuses a sandbox that is larger than every host (L-24), or that names a host or a runtime that does not exist. One that only has to wait passes.
 * @throws {DroverError} unschedulable, host-not-found
 */
export async function checkFeasible(
  store: HostStore,
  spec: Pick<SandboxSpec, 'host' | 'hostLabels' | 'resources' | 'runtime'>,
  room: Room,
): Promise<Feasibility> {
  const host = spec.host === '' ? '' : (await store.find(spec.host)).id;
  const hosts = await store.list();
  const { runtime = '', resources, hostLabels: labels } = spec;
  checkRuntime(hosts, runtime, host);
  const decision = plan(hosts, {
    room,
    diskBytes: resources.diskBytes,
    runtime,
    labels,
    host,
  });
  if (decision.kind !== 'impossible')
    return { hosts, place: decision.kind === 'host' ? decision.hostId : { unschedulable: decision.message } };
  throw new DroverError('unschedulable', `this sandbox can never be placed: ${decision.message}`, {
    hint: 'ask for less, or join a larger host',
  });
}

/** A sandbox with a runtime that no host has would wait forever. */
function checkRuntime(hosts: readonly HostRow[], runtime: string, host: string): void {
  const asked = hosts.filter(({ id }) => host === '' || id === host);
  // A host reports its runtimes when it first connects.
  const isKnown = asked.length > 0 && asked.every(({ epoch }) => epoch > 0);
  if (runtime === '' || !isKnown || asked.some(({ runtimes }) => runtimes.includes(runtime))) return;
  const there = asked.map(({ name, runtimes }) => `${name}: ${runtimes.join(', ') || 'none'}`).slice(0, maxNamedHosts);
  throw new DroverError(
    'unschedulable',
    `no host has the runtime ${runtime} (${there.join('; ')}${asked.length > maxNamedHosts ? '; …' : ''})`,
    {
      hint: 'leave out --runtime, or name one that a host has',
    },
  );
}

/** What placement counts for a sandbox; defaults stand for what it does not limit. */
export function roomOf({ resources }: Pick<SandboxSpec, 'resources'>): Room {
  return {
    cpuMillis: resources.cpuMillis || defaultRequestCpuMillis,
    memoryBytes: resources.memoryBytes || defaultRequestMemoryBytes,
    slots: 1,
  };
}
