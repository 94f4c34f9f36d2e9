import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { newHostId, newSandboxId, parseName, parseProject, type HostId } from '@drover/foundation';
import { link, sandbox } from '@drover/protocol';
import type { Room } from '../../model/host.ts';
import type { SandboxDraft, Store } from '../index.ts';
import type { SandboxRow } from '../../model/sandbox.ts';

const GiB = 1024 ** 3;

/** The request of most test sandboxes: a tenth of a test host. */
export const smallRoom: Room = { cpuMillis: 400, memoryBytes: GiB, slots: 1 };

let count = 0;

export function draft(
  options: {
    readonly name?: string;
    readonly project?: string;
    readonly room?: Room;
    readonly labels?: Record<string, string>;
    readonly spec?: MessageInitShape<typeof sandbox.SandboxSpecSchema>;
  } = {},
): SandboxDraft {
  return {
    id: newSandboxId(),
    project: parseProject(options.project ?? ''),
    name: parseName(options.name ?? `box-${++count}`),
    spec: create(sandbox.SandboxSpecSchema, { image: 'host', ...options.spec }),
    labels: options.labels ?? {},
    request: options.room ?? smallRoom,
  };
}

export function registration(
  hostId: string,
  options: {
    readonly hostname?: string;
    readonly slots?: number;
    readonly cpuMillis?: number;
    readonly memoryBytes?: number;
    readonly labels?: Record<string, string>;
    readonly sandboxes?: readonly sandbox.SandboxObservation[];
  } = {},
): link.Register {
  return create(link.RegisterSchema, {
    hostId,
    hostname: options.hostname ?? hostId.slice(0, 6),
    labels: options.labels ?? {},
    capacity: {
      cpuMillis: options.cpuMillis ?? 4000,
      memoryBytes: BigInt(options.memoryBytes ?? 10 * GiB),
      diskBytes: BigInt(100 * GiB),
      slots: options.slots ?? 10,
    },
    runtimes: ['fake', 'oci'],
    agentVersion: '0.1.0',
    bootId: 'boot-1',
    sandboxes: [...(options.sandboxes ?? [])],
  });
}

/** Joins and registers a host. */
export async function readyHost(
  store: Store,
  options: Parameters<typeof registration>[1] = {},
): Promise<{ readonly id: HostId; readonly epoch: number }> {
  const id = newHostId();
  await store.hosts.join({ id, name: options.hostname ?? id.slice(0, 6), labels: {}, certificateExpiresAt: 1 });
  const { epoch } = await store.hosts.register(registration(id, options), 'replica-1');
  return { id, epoch };
}

/** A host's observation of a sandbox. Default: the row's generation and the next sequence. */
export function seen(
  row: Pick<SandboxRow, 'id' | 'generation' | 'observedSequence'>,
  state: keyof typeof sandbox.SandboxState,
  more: MessageInitShape<typeof sandbox.SandboxObservationSchema> = {},
): sandbox.SandboxObservation {
  return create(sandbox.SandboxObservationSchema, {
    sandboxId: row.id,
    generation: BigInt(row.generation),
    sequence: BigInt(row.observedSequence + 1),
    state: sandbox.SandboxState[state],
    startCount: 1n,
    runtime: 'fake',
    address: '10.0.0.2',
    resources: create(sandbox.ResourcesSchema, { cpuMillis: smallRoom.cpuMillis, memoryBytes: BigInt(smallRoom.memoryBytes) }),
    ...more,
  });
}
