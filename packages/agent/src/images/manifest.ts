import { DroverError } from '@drover/foundation';
import { z } from 'zod';
import { maxBlobBytes, maxLayers } from '../limits.ts';
import { parseDigest } from './digest.ts';
import type { ImageConfig } from './images.ts';

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | undefined;
}

/** Optional fields of another type count as absent. */
const text = z.string().catch('');
const optionalText = z.string().optional().catch(undefined);
const strings = z
  .array(z.string())
  .nullish()
  .transform((list) => list ?? []);
const digest = z.string().transform((value) => {
  parseDigest(value);
  return value;
});

const platformSchema = z.object({ os: text, architecture: text, variant: optionalText });

/** image-spec descriptor.md */
const descriptorSchema = z.object({
  mediaType: text,
  digest,
  size: z.int().nonnegative(),
  platform: platformSchema.optional(),
  annotations: z
    .record(z.string(), z.unknown())
    .default({})
    .transform((all) => Object.fromEntries(Object.entries(all).filter((pair): pair is [string, string] => typeof pair[1] === 'string'))),
});
export type Descriptor = Readonly<z.infer<typeof descriptorSchema>>;

export type Manifest =
  | { readonly kind: 'index'; readonly manifests: readonly Descriptor[] }
  | { readonly kind: 'manifest'; readonly config: Descriptor; readonly layers: readonly Descriptor[] };

const indexSchema = z.object({ manifests: z.array(descriptorSchema) });
const manifestSchema = z.object({ config: descriptorSchema, layers: z.array(descriptorSchema) });

/** image-spec config.md; Docker's config has the same fields. */
const configSchema = platformSchema.extend({
  config: z.object({ Entrypoint: strings, Cmd: strings, Env: strings, WorkingDir: text, User: text, StopSignal: text }).nullish(),
  rootfs: z.object({ diff_ids: z.array(digest).nullish() }),
});

/** OCI and Docker (image-spec media-types.md; distribution, manifest-v2-2). */
export const indexTypes = ['application/vnd.oci.image.index.v1+json', 'application/vnd.docker.distribution.manifest.list.v2+json'];
export const manifestTypes = ['application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json'];
const layerType =
  /^application\/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)(?:[.+](?:gzip|zstd))?$/;

const hint = 'the image was built or copied wrongly; try another tag';

function parseJson(data: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(Buffer.from(data).toString('utf8'));
  } catch (cause) {
    throw new DroverError('corrupt-image', `the image's ${what} is not JSON`, { hint, cause });
  }
}

function parse<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const place = issue === undefined || issue.path.length === 0 ? '' : ` at ${issue.path.join('.')}`;
  throw new DroverError('corrupt-image', `the image is not readable: its ${what} is malformed${place}`, { hint, cause: parsed.error });
}

/** @throws {DroverError} corrupt-image, too-large */
export function parseManifest(data: Uint8Array): Manifest {
  const value = parseJson(data, 'manifest');
  const fields = parse(z.looseObject({ schemaVersion: z.unknown().optional(), manifests: z.unknown().optional() }), value, 'manifest');
  if (fields.schemaVersion === 1) {
    throw new DroverError('corrupt-image', 'the image has a manifest of schema 1, which Docker gave up in 2017', {
      hint: 'push it again with a current tool',
    });
  }
  if (fields.manifests !== undefined) return { kind: 'index', ...parse(indexSchema, value, 'index') };
  const manifest = parse(manifestSchema, value, 'manifest');
  const tooLarge = (message: string): DroverError => new DroverError('too-large', message, { hint: 'use a smaller image' });
  if (manifest.layers.length > maxLayers) throw tooLarge(`the image has ${manifest.layers.length} layers, more than ${maxLayers}`);
  for (const { mediaType, size } of manifest.layers) {
    if (!layerType.test(mediaType)) {
      const type = JSON.stringify(mediaType.slice(0, 100));
      throw new DroverError('corrupt-image', `the image is not readable: a layer is ${type}, which is no file system`, { hint });
    }
    if (size > maxBlobBytes) throw tooLarge(`a layer of the image has more than ${maxBlobBytes / 1024 ** 3} GiB`);
  }
  return { kind: 'manifest', ...manifest };
}

export interface ParsedConfig {
  readonly config: ImageConfig;
  readonly diffIds: readonly string[];
  readonly platform: Platform;
}

/** @throws {DroverError} corrupt-image */
export function parseConfig(data: Uint8Array): ParsedConfig {
  const { config, rootfs, os, architecture, variant } = parse(configSchema, parseJson(data, 'config'), 'config');
  return {
    config: {
      entrypoint: config?.Entrypoint ?? [],
      command: config?.Cmd ?? [],
      env: config?.Env ?? [],
      workdir: config?.WorkingDir ?? '',
      user: config?.User ?? '',
      stopSignal: config?.StopSignal ?? '',
    },
    diffIds: rootfs.diff_ids ?? [],
    platform: { os, architecture, variant },
  };
}
