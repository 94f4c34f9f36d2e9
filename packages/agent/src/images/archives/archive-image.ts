import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, formatBytes } from '@drover/foundation';
import { formatImageReference, parseRegistryReference, type ArchiveReference } from '@drover/spec';
import { maxImageConfigBytes, maxLayers, maxManifestBytes } from '../../limits.ts';
import { indexArchive, type ArchiveIndex } from './archive-index.ts';
import { digestOf, parseDigest } from '../digest.ts';
import { parseConfig, parseManifest, type Descriptor, type Platform } from '../manifest.ts';
import { choosePlatform } from '../platform.ts';
import type { FoundImage, FoundLayer } from '../found-image.ts';

export interface ArchiveOptions {
  readonly reference: ArchiveReference;
  readonly platform: Platform;
  /** For an archive that is compressed as a whole. */
  readonly scratch: string;
}

/** An image in an archive or a layout directory. Dispose `files` when the layers are unpacked. */
export interface ArchiveImage {
  readonly image: FoundImage;
  readonly files: AsyncDisposable;
}

/**
 * Finds the image in what skopeo, umoci or docker save wrote.
 * @throws {DroverError} image-not-found, corrupt-image, too-large, unsafe-archive
 */
export async function openArchive({ reference, platform, scratch }: ArchiveOptions, signal: AbortSignal): Promise<ArchiveImage> {
  const text = formatImageReference(reference);
  const kind = await kindOfPath(reference.path);
  const wantsDirectory = reference.kind === 'oci';
  if (kind === undefined || (kind === 'directory') !== wantsDirectory) {
    throw new DroverError(
      'image-not-found',
      `there is no ${wantsDirectory ? 'image layout' : 'archive'} at ${reference.path} on the host`,
      {
        hint: kind === 'directory' ? `it is a directory: oci:${reference.path}` : 'the path is looked up on the host that runs the sandbox',
      },
    );
  }
  const files = wantsDirectory ? layoutDirectory(reference.path) : await indexArchive(reference.path, scratch, signal);
  try {
    // docker save writes both formats since version 25; manifest.json has the tags that a person knows.
    const image =
      reference.kind === 'docker-archive'
        ? await findSaved(files, reference, text)
        : await findInLayout(files, reference.name, platform, text);
    return { image, files };
  } catch (error) {
    await files[Symbol.asyncDispose]();
    throw error;
  }
}

async function kindOfPath(path: string): Promise<'file' | 'directory' | undefined> {
  try {
    return (await stat(path)).isDirectory() ? 'directory' : 'file';
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes(errnoOf(error) ?? '')) return undefined;
    throw error;
  }
}

const blobName = (digest: string): string => {
  const { algorithm, hex } = parseDigest(digest);
  return `blobs/${algorithm}/${hex}`;
};

/** A layout directory, read like an archive. The names come from digests, so that no path leaves it. */
function layoutDirectory(directory: string): ArchiveIndex {
  return {
    member: (name) => ({ path: join(directory, name), offset: 0, size: -1 }),
    async read(name, limit) {
      try {
        if ((await stat(join(directory, name))).size > limit) {
          throw new DroverError('too-large', `${name} in ${directory} has more than ${formatBytes(limit)}`, { hint: 'is it an image?' });
        }
        return await readFile(join(directory, name));
      } catch (error) {
        if (errnoOf(error) !== 'ENOENT') throw error;
        throw new DroverError('corrupt-image', `the image layout ${directory} has no ${name}`, {
          hint: 'is it an image? save it again',
          cause: error,
        });
      }
    },
    async [Symbol.asyncDispose]() {},
  };
}

/** image-spec image-layout.md */
async function findInLayout(files: ArchiveIndex, name: string | undefined, platform: Platform, text: string): Promise<FoundImage> {
  const index = parseManifest(await files.read('index.json', maxManifestBytes));
  if (index.kind !== 'index') throw new DroverError('corrupt-image', `${text} has no index`, { hint: 'is it an image? save it again' });
  const nameOf = (d: Descriptor): string =>
    d.annotations['org.opencontainers.image.ref.name'] ?? d.annotations['io.containerd.image.name'] ?? '';
  let candidates = index.manifests;
  if (name !== undefined) {
    candidates = candidates.filter((d) => nameOf(d) === name || d.annotations['io.containerd.image.name'] === name || d.digest === name);
  }
  const names = [...new Set(index.manifests.map(nameOf))];
  if (candidates.length === 0) {
    throw new DroverError('image-not-found', `there is no image ${text}`, {
      hint: names.length === 0 ? 'the layout is empty' : `it has ${names.join(', ')}`,
    });
  }
  if (name === undefined && names.length > 1) {
    throw new DroverError('image-not-found', `${text} has several images`, { hint: `add one of their names: ${names.join(', ')}` });
  }
  let [chosen] = candidates.length === 1 ? candidates : [choosePlatform(candidates, platform, text)];
  for (let depth = 0; chosen !== undefined && depth < 4; depth++) {
    const data = await files.read(blobName(chosen.digest), maxManifestBytes);
    verify(data, chosen.digest, text);
    const manifest = parseManifest(data);
    if (manifest.kind === 'index') {
      chosen = choosePlatform(manifest.manifests, platform, text);
      continue;
    }
    const configData = await files.read(blobName(manifest.config.digest), maxImageConfigBytes);
    verify(configData, manifest.config.digest, text);
    const parsed = parseConfig(configData);
    if (parsed.diffIds.length !== manifest.layers.length) throw layersDiffer(text);
    const layers = manifest.layers.map((layer, i) => localLayer(files, blobName(layer.digest), parsed.diffIds[i] as string, layer));
    return { digest: chosen.digest, config: parsed.config, layers };
  }
  throw new DroverError('corrupt-image', `${text} nests its indexes too deeply`, { hint: 'save it again' });
}

/** The manifest.json of `docker save`, in all its versions (moby image/spec v1.2). */
async function findSaved(files: ArchiveIndex, reference: ArchiveReference, text: string): Promise<FoundImage> {
  let parsed: unknown;
  try {
    parsed = JSON.parse((await files.read('manifest.json', maxManifestBytes)).toString('utf8'));
  } catch (error) {
    if (error instanceof DroverError) throw error;
    throw new DroverError('corrupt-image', `the manifest.json of ${text} is not JSON`, { hint: 'save it again', cause: error });
  }
  const images = (Array.isArray(parsed) ? parsed : []).filter(
    (item): item is Record<string, unknown> => typeof item === 'object' && item !== null,
  );
  const tagsOf = (item: Record<string, unknown>): string[] => (Array.isArray(item['RepoTags']) ? item['RepoTags'].map(String) : []);
  const all = images.flatMap(tagsOf);
  const wanted = reference.name;
  // skopeo writes docker.io/library/busybox:1, docker save busybox:1; they mean the same.
  const matching =
    wanted === undefined ? images : images.filter((item) => tagsOf(item).some((tag) => canonical(tag) === canonical(wanted)));
  const [image] = matching;
  if (image === undefined) {
    throw new DroverError('image-not-found', `there is no image ${text}`, {
      hint: all.length === 0 ? 'the archive is empty' : `it has ${all.join(', ')}`,
    });
  }
  if (matching.length > 1) {
    throw new DroverError('image-not-found', `${text} has several images`, { hint: `add one of their names: ${all.join(', ')}` });
  }
  const configName = String(image['Config']);
  const paths = Array.isArray(image['Layers']) ? image['Layers'].map(String) : [];
  if (paths.length > maxLayers)
    throw new DroverError('too-large', `${text} has more than ${maxLayers} layers`, { hint: 'use a smaller image' });
  const data = await files.read(configName, maxImageConfigBytes);
  const digest = digestOf(data);
  // The config is named by its digest in every version of the format; the layers are verified by their diff ids.
  const claimed = /([0-9a-f]{64})(?:\.json)?$/.exec(configName)?.[1];
  if (claimed !== undefined) verify(data, `sha256:${claimed}`, text);
  const config = parseConfig(data);
  if (config.diffIds.length !== paths.length) throw layersDiffer(text);
  return {
    digest,
    config: config.config,
    layers: paths.map((path, i) => localLayer(files, path, config.diffIds[i] as string, undefined)),
  };
}

function canonical(name: string): string {
  try {
    return formatImageReference(parseRegistryReference(name));
  } catch {
    // Not a reference: it equals only itself.
    return name;
  }
}

function localLayer(files: ArchiveIndex, name: string, diffId: string, descriptor: Descriptor | undefined): FoundLayer {
  return {
    diffId,
    size: descriptor?.size ?? Math.max(0, files.member(name)?.size ?? 0),
    async fetch(onBytes) {
      const member = files.member(name);
      const missing = (cause?: unknown): DroverError =>
        new DroverError('corrupt-image', `the image has no ${name}, which is one of its layers`, { hint: 'save it again', cause });
      if (member === undefined) throw missing();
      let { size } = member;
      if (size < 0) {
        try {
          ({ size } = await stat(member.path));
        } catch (error) {
          throw missing(error);
        }
      }
      if (descriptor !== undefined && size !== descriptor.size) {
        throw new DroverError('corrupt-image', `${name} has ${size} bytes, but ${descriptor.size} in the manifest`, {
          hint: 'save it again',
        });
      }
      onBytes(size);
      return { path: member.path, offset: member.offset, size, digest: descriptor?.digest };
    },
    async discard() {},
  };
}

function verify(data: Buffer, digest: string, text: string): void {
  if (digestOf(data, parseDigest(digest).algorithm) === digest) return;
  throw new DroverError('corrupt-image', `${text} is damaged: ${digest} is not what it should be`, { hint: 'save it again' });
}

const layersDiffer = (text: string): DroverError =>
  new DroverError('corrupt-image', `${text} and its config differ in the number of layers`, { hint: 'save it again' });
