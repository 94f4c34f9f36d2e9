import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError, type HostId, type Name, hasCode, parseName } from '@drover/foundation';
import { api } from '@drover/protocol';
import { maxVolumeBytes, minVolumeBytes } from '@drover/spec';
import { type SandboxSpec } from '@drover/spec/sandbox';
import { hostState, type HostRow, type VolumeRow } from '../../model/index.ts';
import type { Store, Tables } from '../../store/index.ts';
import { type ApiContext, once } from '../edge/index.ts';

/** Volumes are rows of the store that hosts carry out; how much is in one, its host is asked. */
export function volumeService(context: ApiContext): ServiceImpl<typeof api.VolumeService> {
  const { store, volumes } = context;

  async function describe(rows: readonly VolumeRow[], signal: AbortSignal): Promise<api.Volume[]> {
    const [hosts, users] = await Promise.all([
      store.hosts.list({ includeRemoved: true }),
      store.volumes.users(rows.map((row) => row.name)),
    ]);
    const hostIds = [...new Set(rows.map((row) => row.hostId))];
    const used = new Map<HostId, ReadonlyMap<string, bigint> | undefined>();
    await Promise.all(hostIds.map(async (id) => used.set(id, await volumes.used(id, signal))));
    return rows.map((row) => {
      const host = hosts.find(({ id }) => id === row.hostId);
      const usedBytes = used.get(row.hostId)?.get(row.name);
      return create(api.VolumeSchema, {
        name: row.name,
        hostId: row.hostId,
        hostName: host?.name ?? '',
        sizeBytes: BigInt(row.sizeBytes),
        state: row.state,
        ...explanationOf(row, host, used.get(row.hostId)),
        createdAt: timestampFromMs(row.createdAt),
        sandboxes: [...(users.get(row.name) ?? [])],
        ...(usedBytes !== undefined && { usedBytes }),
      });
    });
  }

  async function describeOne(row: VolumeRow, signal: AbortSignal): Promise<api.Volume> {
    const [volume] = await describe([row], signal);
    if (volume === undefined) throw new DroverError('internal', 'a volume was not described');
    return volume;
  }

  return {
    async createVolume(request, { values, signal }) {
      const name = parseName(request.name);
      const sizeBytes = checkSize(request.sizeBytes);
      const make = async (tables: Tables): Promise<VolumeRow> => {
        const host = await chooseHost(tables, request.host);
        return await tables.volumes.create({ name, hostId: host.id, sizeBytes });
      };
      let made: VolumeRow | undefined;
      await once(store, values, api.VolumeService.method.createVolume, request, async (tables) => {
        made = await make(tables);
        return create(api.VolumeSchema, { name });
      });
      const row = made ?? (await findOrMake(store, name, make));
      try {
        await volumes.settle(row);
      } catch (thrown) {
        const error = DroverError.from(thrown);
        // Its host makes it when it is back. What it refuses is not kept.
        if (!error.transient && error.code !== 'cancelled') {
          await store.volumes.drop(name);
          throw error;
        }
      }
      return await describeOne(await store.volumes.find(name), signal);
    },

    async getVolume(request, { signal }) {
      return await describeOne(await store.volumes.find(request.name), signal);
    },

    async listVolumes(request, { signal }) {
      const host = request.host === '' ? undefined : await store.hosts.find(request.host);
      const rows = await store.volumes.list(host === undefined ? {} : { hostId: host.id });
      return create(api.ListVolumesResponseSchema, { volumes: await describe(rows, signal) });
    },

    async removeVolume(request) {
      const row = await store.volumes.remove(request.name);
      if ((await store.hosts.get(row.hostId))?.removedAt !== undefined) await store.volumes.drop(row.name);
      else {
        try {
          await volumes.settle(row);
        } catch (thrown) {
          // It is removed when its host is back; until then it is shown as deleting.
          const error = DroverError.from(thrown);
          if (!error.transient) throw error;
        }
      }
      return create(api.RemoveVolumeResponseSchema);
    },
  };
}

/** Of a repeated call. A volume that its host refused is not kept: the host is asked again, so that the caller gets its reason again. */
async function findOrMake(store: Store, name: string, make: (tables: Tables) => Promise<VolumeRow>): Promise<VolumeRow> {
  try {
    return await store.volumes.find(name);
  } catch (error) {
    if (!hasCode(error, 'volume-not-found')) throw error;
    return await store.together(make);
  }
}

/** @param held the volumes of its host; undefined: it could not be asked */
function explanationOf(
  { name, state, message, hint }: VolumeRow,
  host: HostRow | undefined,
  held: ReadonlyMap<string, bigint> | undefined,
): { readonly message: string; readonly hint: string } {
  if (host?.removedAt !== undefined) return { message: 'its host was removed', hint: 'remove the volume' };
  if (state === 'ready' && held?.has(name) === false) {
    return { message: 'its file is missing on the host', hint: 'remove the volume and create it again' };
  }
  return { message, hint };
}

function checkSize(bytes: bigint): number {
  if (bytes >= BigInt(minVolumeBytes) && bytes <= BigInt(maxVolumeBytes)) return Number(bytes);
  throw new DroverError('invalid-argument', `a volume cannot have ${bytes} bytes`, {
    hint: 'give a size from 16 MiB to 16 TiB, such as 1g',
  });
}

/** @throws {DroverError} host-not-found, host-unavailable, too-large */
async function chooseHost(tables: Tables, reference: string): Promise<HostRow> {
  if (reference !== '') {
    const host = await tables.hosts.find(reference);
    if (host.removedAt === undefined) return host;
    throw new DroverError('host-not-found', `the host ${host.name} was removed`, { hint: '`drover host ls` lists hosts' });
  }
  const ready = (await tables.hosts.list()).filter((host) => hostState(host) === 'ready');
  const counts = new Map<string, number>();
  for (const { hostId } of await tables.volumes.list()) counts.set(hostId, (counts.get(hostId) ?? 0) + 1);
  const [host] = ready.toSorted((a, b) => (counts.get(a.id) ?? 0) - (counts.get(b.id) ?? 0) || (a.id < b.id ? -1 : 1));
  if (host !== undefined) return host;
  throw new DroverError('host-unavailable', 'no host is ready', {
    hint: '`drover host ls` shows them; --host names one that is not ready yet',
  });
}

/**
 * The names of a sandbox's volumes, and the host that it goes to: theirs, where it has volumes.
 * @throws {DroverError} volume-not-found, invalid-argument when they are on different hosts or another host is asked for
 */
export async function placeByVolumes(
  tables: Tables,
  { mounts, host: wanted }: Pick<SandboxSpec, 'mounts' | 'host'>,
): Promise<{ readonly volumes: readonly Name[]; readonly host: string }> {
  const volumes = [...new Set(mounts.flatMap(({ volume }) => (volume === '' ? [] : [volume])))];
  const [first, ...others] = await Promise.all(volumes.map(async (name) => await tables.volumes.find(name)));
  if (first === undefined) return { volumes, host: wanted };
  const elsewhere = others.find((row) => row.hostId !== first.hostId);
  if (elsewhere !== undefined) {
    throw new DroverError('invalid-argument', `the volumes ${first.name} and ${elsewhere.name} are on different hosts`, {
      hint: 'a sandbox can only have volumes of one host; see `drover volume ls`',
    });
  }
  const host = await tables.hosts.find(first.hostId);
  if (wanted !== '' && wanted !== host.id && wanted !== host.name) {
    throw new DroverError('invalid-argument', `the volume ${first.name} is on the host ${host.name}, not on ${wanted}`, {
      hint: 'leave --host out: the sandbox goes where its volume is',
    });
  }
  return { volumes, host: host.id };
}
