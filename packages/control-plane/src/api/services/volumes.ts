import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { ContextValues, ServiceImpl } from '@connectrpc/connect';
import { DroverError, hasCode, parseName, type HostId } from '@drover/foundation';
import { api } from '@drover/protocol';
import { maxVolumeBytes, minVolumeBytes } from '@drover/spec';
import type { HostRow, VolumeRow } from '../../model/index.ts';
import type { Store, Tables } from '../../store/index.ts';
import { once, type ApiContext } from '../edge/index.ts';
import { chooseVolumeHost } from './volume-placement.ts';

/** Volumes: rows of the store, which hosts carry out. The host of a volume reports how much is stored in it. */
export function volumeService(context: ApiContext): ServiceImpl<typeof api.VolumeService> {
  const { store, volumes } = context;
  return {
    createVolume: async (request, { values, signal }) => await createVolume(context, request, values, signal),

    async getVolume(request, { signal }) {
      return await describeVolume(context, await store.volumes.find(request.name), signal);
    },

    async listVolumes(request, { signal }) {
      const host = request.host === '' ? undefined : await store.hosts.find(request.host);
      const rows = await store.volumes.list(host === undefined ? {} : { hostId: host.id });
      return create(api.ListVolumesResponseSchema, { volumes: await describeVolumes(context, rows, signal) });
    },

    async removeVolume(request) {
      const row = await store.volumes.remove(request.name);
      if ((await store.hosts.get(row.hostId))?.removedAt !== undefined) {
        await store.volumes.drop(row.name);
        return create(api.RemoveVolumeResponseSchema);
      }
      try {
        await volumes.settle(row);
      } catch (thrown) {
        // A host that is absent removes it when it reconnects; until then its state is deleting.
        const error = DroverError.from(thrown);
        if (!error.transient) throw error;
      }
      return create(api.RemoveVolumeResponseSchema);
    },
  };
}

async function createVolume(
  context: ApiContext,
  request: api.CreateVolumeRequest,
  values: ContextValues,
  signal: AbortSignal,
): Promise<api.Volume> {
  const { store, volumes } = context;
  const name = parseName(request.name);
  const sizeBytes = checkSize(request.sizeBytes);
  const insert = async (tables: Tables): Promise<VolumeRow> => {
    const host = await chooseVolumeHost(tables, request.host);
    return await tables.volumes.create({ name, hostId: host.id, sizeBytes });
  };
  let created: VolumeRow | undefined;
  await once(store, values, api.VolumeService.method.createVolume, request, async (tables) => {
    created = await insert(tables);
    return create(api.VolumeSchema, { name });
  });
  const row = created ?? (await findOrInsert(store, name, insert));
  try {
    await volumes.settle(row);
  } catch (thrown) {
    const error = DroverError.from(thrown);
    // A host that is absent creates it when it reconnects. A volume that its host refuses is dropped.
    if (!error.transient && error.code !== 'cancelled') {
      await store.volumes.drop(name);
      throw error;
    }
  }
  return await describeVolume(context, await store.volumes.find(name), signal);
}

/** For a repeated call. A volume that its host refused was dropped: the host is asked again, so that the caller receives its reason. */
async function findOrInsert(store: Store, name: string, insert: (tables: Tables) => Promise<VolumeRow>): Promise<VolumeRow> {
  try {
    return await store.volumes.find(name);
  } catch (error) {
    if (!hasCode(error, 'volume-not-found')) throw error;
    return await store.together(insert);
  }
}

async function describeVolume(context: ApiContext, row: VolumeRow, signal: AbortSignal): Promise<api.Volume> {
  const [volume] = await describeVolumes(context, [row], signal);
  if (volume === undefined) throw new DroverError('internal', 'a volume was not described');
  return volume;
}

async function describeVolumes({ store, volumes }: ApiContext, rows: readonly VolumeRow[], signal: AbortSignal): Promise<api.Volume[]> {
  const names = rows.map((row) => row.name);
  const [hosts, users] = await Promise.all([store.hosts.list({ includeRemoved: true }), store.volumes.users(names)]);
  const used = new Map<HostId, ReadonlyMap<string, bigint> | undefined>();
  await Promise.all([...new Set(rows.map((row) => row.hostId))].map(async (id) => used.set(id, await volumes.used(id, signal))));
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

/** @param held the volumes that its host reports; undefined: the host did not respond */
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
