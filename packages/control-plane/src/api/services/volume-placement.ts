import { DroverError, type Name } from '@drover/foundation';
import type { SandboxSpec } from '@drover/spec/sandbox';
import { hostState, type HostRow } from '../../model/index.ts';
import type { Tables } from '../../store/index.ts';

/** The host for a new volume: the named one, or the ready host with the fewest volumes. @throws {DroverError} host-not-found, host-unavailable */
export async function chooseVolumeHost(tables: Tables, reference: string): Promise<HostRow> {
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
 * The names of a sandbox's volumes, and its host: that of its volumes, if it has any.
 * @throws {DroverError} volume-not-found, invalid-argument when they are on different hosts or the spec names another host
 */
export async function placeByVolumes(
  tables: Tables,
  { mounts, host: requested }: Pick<SandboxSpec, 'mounts' | 'host'>,
): Promise<{ readonly volumes: readonly Name[]; readonly host: string }> {
  const volumes = [...new Set(mounts.flatMap(({ volume }) => (volume === '' ? [] : [volume])))];
  const [first, ...others] = await Promise.all(volumes.map(async (name) => await tables.volumes.find(name)));
  if (first === undefined) return { volumes, host: requested };
  const elsewhere = others.find((row) => row.hostId !== first.hostId);
  if (elsewhere !== undefined) {
    throw new DroverError('invalid-argument', `the volumes ${first.name} and ${elsewhere.name} are on different hosts`, {
      hint: 'a sandbox can only have volumes of one host; see `drover volume ls`',
    });
  }
  const host = await tables.hosts.find(first.hostId);
  if (requested !== '' && requested !== host.id && requested !== host.name) {
    throw new DroverError('invalid-argument', `the volume ${first.name} is on the host ${host.name}, not on ${requested}`, {
      hint: 'leave --host out: the sandbox goes where its volume is',
    });
  }
  return { volumes, host: host.id };
}
