import { DroverError } from '@drover/foundation';
import { maxBlobBytes, maxLayers } from '../limits.ts';
import { parseDigest } from './digest.ts';
import type { ImageConfig } from './images.ts';

/** What a descriptor says (image-spec descriptor.md). */
export interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly platform: Platform | undefined;
  readonly annotations: Readonly<Record<string, string>>;
}

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | undefined;
}

export type Manifest =
  | { readonly kind: 'index'; readonly manifests: readonly Descriptor[] }
  | { readonly kind: 'manifest'; readonly config: Descriptor; readonly layers: readonly Descriptor[] };

/** OCI and Docker (image-spec media-types.md; distribution, manifest-v2-2). */
export const indexTypes = ['application/vnd.oci.image.index.v1+json', 'application/vnd.docker.distribution.manifest.list.v2+json'];
export const manifestTypes = ['application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json'];
const layerType =
  /^application\/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)(?:[.+](?:gzip|zstd))?$/;

const hint = 'the image was built or copied wrongly; try another tag';
const corrupt = (message: string): DroverError => new DroverError('corrupt-image', `the image is not readable: ${message}`, { hint });

function parseJson(data: Uint8Array, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(data).toString('utf8'));
  } catch (error) {
    throw new DroverError('corrupt-image', `the image's ${what} is not JSON`, { hint, cause: error });
  }
  return object(value, what);
}

function object(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw corrupt(`its ${what} is not an object`);
  return value as Record<string, unknown>;
}

function array(value: unknown, what: string): readonly unknown[] {
  if (!Array.isArray(value)) throw corrupt(`its ${what} is not a list`);
  return value;
}

function string(value: unknown, what: string): string {
  if (typeof value !== 'string') throw corrupt(`its ${what} is not a string`);
  return value;
}

function strings(value: unknown, what: string): readonly string[] {
  if (value === undefined || value === null) return [];
  return array(value, what).map((item) => string(item, what));
}

/** What is optional and of another type counts as absent. */
const text = (value: unknown): string => (typeof value === 'string' ? value : '');

function descriptor(value: unknown): Descriptor {
  const fields = object(value, 'descriptor');
  const size = fields['size'];
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) throw corrupt('a size is no number');
  const digest = string(fields['digest'], 'digest');
  parseDigest(digest);
  const platform = fields['platform'] === undefined ? undefined : object(fields['platform'], 'platform');
  const annotations = fields['annotations'] === undefined ? {} : object(fields['annotations'], 'annotations');
  return {
    mediaType: typeof fields['mediaType'] === 'string' ? fields['mediaType'] : '',
    digest,
    size,
    platform:
      platform === undefined
        ? undefined
        : {
            os: text(platform['os']),
            architecture: text(platform['architecture']),
            variant: typeof platform['variant'] === 'string' ? platform['variant'] : undefined,
          },
    annotations: Object.fromEntries(Object.entries(annotations).filter((pair): pair is [string, string] => typeof pair[1] === 'string')),
  };
}

/** @throws {DroverError} corrupt-image, too-large */
export function parseManifest(data: Uint8Array): Manifest {
  const fields = parseJson(data, 'manifest');
  if (fields['schemaVersion'] === 1) {
    throw new DroverError('corrupt-image', 'the image has a manifest of schema 1, which Docker gave up in 2017', {
      hint: 'push it again with a current tool',
    });
  }
  if (fields['manifests'] !== undefined) {
    return { kind: 'index', manifests: array(fields['manifests'], 'index').map(descriptor) };
  }
  const layers = array(fields['layers'], 'list of layers').map(descriptor);
  if (layers.length > maxLayers)
    throw new DroverError('too-large', `the image has ${layers.length} layers, more than ${maxLayers}`, { hint });
  for (const layer of layers) {
    if (!layerType.test(layer.mediaType))
      throw corrupt(`a layer is ${JSON.stringify(layer.mediaType.slice(0, 100))}, which is no file system`);
    if (layer.size > maxBlobBytes) {
      throw new DroverError('too-large', `a layer of the image has more than ${maxBlobBytes / 1024 ** 3} GiB`, {
        hint: 'use a smaller image',
      });
    }
  }
  return { kind: 'manifest', config: descriptor(fields['config']), layers };
}

export interface ParsedConfig {
  readonly config: ImageConfig;
  readonly diffIds: readonly string[];
  readonly platform: Platform;
}

/** image-spec config.md; Docker's config has the same fields. @throws {DroverError} corrupt-image */
export function parseConfig(data: Uint8Array): ParsedConfig {
  const fields = parseJson(data, 'config');
  const inner = fields['config'] === undefined || fields['config'] === null ? {} : object(fields['config'], 'config');
  const rootfs = object(fields['rootfs'], 'rootfs');
  const diffIds = strings(rootfs['diff_ids'], 'list of layers');
  for (const diffId of diffIds) parseDigest(diffId);
  return {
    config: {
      entrypoint: strings(inner['Entrypoint'], 'entry point'),
      command: strings(inner['Cmd'], 'command'),
      env: strings(inner['Env'], 'environment'),
      workdir: text(inner['WorkingDir']),
      user: text(inner['User']),
      stopSignal: text(inner['StopSignal']),
    },
    diffIds,
    platform: {
      os: text(fields['os']),
      architecture: text(fields['architecture']),
      variant: typeof fields['variant'] === 'string' ? fields['variant'] : undefined,
    },
  };
}

const architectures: Record<string, string> = { x64: 'amd64', ia32: '386', ppc64: 'ppc64le' };

/** The platform of this machine, in the words of Go, which the image-spec uses. */
export function hostPlatform(): Platform {
  return { os: 'linux', architecture: architectures[process.arch] ?? process.arch };
}

export const formatPlatform = (platform: Platform): string =>
  [platform.os, platform.architecture, platform.variant].filter((part) => part !== undefined && part !== '').join('/');

/** Variants that run on a machine, best first (image-spec image-index.md). */
function variants(platform: Platform): readonly string[] {
  if (platform.architecture === 'arm64') return ['v8', ''];
  if (platform.architecture === 'arm') {
    const best = Number(/^v(\d)$/.exec(platform.variant ?? 'v7')?.[1] ?? 7);
    return [...Array.from({ length: Math.max(0, best - 4) }, (_, i) => `v${best - i}`), ''];
  }
  if (platform.architecture === 'amd64') {
    const best = Number(/^v(\d)$/.exec(platform.variant ?? 'v1')?.[1] ?? 1);
    return [...Array.from({ length: best }, (_, i) => `v${best - i}`), ''];
  }
  return [platform.variant ?? '', ''];
}

/** The manifest of an index that this machine runs. @throws {DroverError} image-not-found */
export function choosePlatform(manifests: readonly Descriptor[], platform: Platform, reference: string): Descriptor {
  const known = [...indexTypes, ...manifestTypes, ''];
  const candidates = manifests.filter((m) => known.includes(m.mediaType));
  const fitting = candidates.filter((m) => m.platform?.os === platform.os && m.platform.architecture === platform.architecture);
  for (const variant of variants(platform)) {
    const chosen = fitting.find((m) => (m.platform?.variant ?? '') === variant);
    if (chosen !== undefined) return chosen;
  }
  // A layout with one image often says no platform.
  const [only] = candidates;
  if (candidates.length === 1 && only !== undefined && only.platform === undefined) return only;
  const offered = [...new Set(candidates.map((m) => (m.platform === undefined ? 'unnamed' : formatPlatform(m.platform))))];
  throw new DroverError('image-not-found', `the image ${reference} has nothing for ${formatPlatform(platform)}`, {
    hint: offered.length === 0 ? 'it is empty' : `it has ${offered.slice(0, 12).join(', ')}`,
  });
}
