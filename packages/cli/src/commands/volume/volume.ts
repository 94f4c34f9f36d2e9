import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { JsonValue } from '@bufbuild/protobuf';
import { DroverError, formatBytes } from '@drover/foundation';
import { api } from '@drover/protocol';
import { maxVolumeBytes, minVolumeBytes } from '@drover/spec';
import type { Cli } from '../../cli.ts';
import { type Column, messageJson } from '../../output/index.ts';
import { parseSize } from '../../parse.ts';

const volumeJson = (volume: api.Volume): JsonValue => messageJson(api.VolumeSchema, volume);
const used = (volume: api.Volume): string => (volume.usedBytes === undefined ? '' : formatBytes(Number(volume.usedBytes)));

const columns: readonly Column<api.Volume>[] = [
  { title: 'NAME', value: (v) => v.name },
  { title: 'HOST', value: (v) => v.hostName },
  { title: 'SIZE', value: (v) => formatBytes(Number(v.sizeBytes)) },
  { title: 'USED', value: used },
  { title: 'STATE', value: (v) => v.state },
  { title: 'SANDBOXES', value: (v) => v.sandboxes.join(', ') },
];

/** prints the name of the new volume. */
export async function create(cli: Cli, [name]: readonly [string], flags: { readonly size: string; readonly host?: string }): Promise<void> {
  const sizeBytes = parseSize('--size', flags.size, minVolumeBytes, maxVolumeBytes);
  const client = await cli.connect();
  const volume = await client.volumes.create(name, {
    sizeBytes,
    ...(flags.host !== undefined && { host: flags.host }),
    signal: cli.signal,
  });
  if (cli.out.json) return cli.out.object(volumeJson(volume));
  if (volume.state !== 'ready') cli.out.note(`the volume is ${volume.state}: ${volume.message}`, volume.hint || undefined);
  cli.out.line(volume.name);
}

export async function ls(cli: Cli, _: readonly [], flags: { readonly host?: string }): Promise<void> {
  const client = await cli.connect();
  const volumes = await client.volumes.list({ ...(flags.host !== undefined && { host: flags.host }), signal: cli.signal });
  cli.out.list(volumes, volumeJson, columns, 'no volumes; drover volume create NAME --size 1g creates one');
}

export async function get(cli: Cli, [name]: readonly [string]): Promise<void> {
  const client = await cli.connect();
  const volume = await client.volumes.get(name, cli.signal);
  if (cli.out.json) return cli.out.object(volumeJson(volume));
  cli.out.details([
    ['name', volume.name],
    ['host', volume.hostName],
    ['size', formatBytes(Number(volume.sizeBytes))],
    ['used', used(volume)],
    ['state', volume.message === '' ? volume.state : `${volume.state} (${volume.message})`],
    ['hint', volume.hint],
    ['created', volume.createdAt === undefined ? '' : timestampDate(volume.createdAt).toISOString()],
    ['sandboxes', volume.sandboxes.join(', ')],
  ]);
}

export async function rm(cli: Cli, [names]: readonly [readonly string[]]): Promise<number> {
  const client = await cli.connect();
  const removed: string[] = [];
  let status = 0;
  for (const name of names) {
    try {
      await client.volumes.remove(name, cli.signal);
      removed.push(name);
      if (!cli.out.json) cli.out.line(name);
    } catch (thrown) {
      const error = DroverError.from(thrown);
      if (names.length === 1 || cli.signal.aborted) throw error;
      cli.out.error(error);
      status = error.exitCode;
    }
  }
  if (cli.out.json) cli.out.object(removed.map((name) => ({ name })));
  return status;
}
