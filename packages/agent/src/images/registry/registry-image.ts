import { DroverError, formatBytes, hasCode, type Clock, type Logger } from '@drover/foundation';
import { formatImageReference, type RegistryReference } from '@drover/spec';
import type { ForeignPaths } from '../../foreign/index.ts';
import { maxImageConfigBytes, maxManifestBytes } from '../../limits.ts';
import type { BlobStore, OpenBlob } from '../layers/blob-store.ts';
import { readCredentials } from './credentials.ts';
import { digestOf, parseDigest } from '../digest.ts';
import { indexTypes, manifestTypes, parseConfig, parseManifest, type Descriptor, type Platform } from '../manifest.ts';
import { choosePlatform } from '../platform.ts';
import { RegistryClient } from './registry-client.ts';
import type { Endpoint } from './registry-endpoint.ts';
import type { FoundImage, FoundLayer } from '../found-image.ts';

/** An operator's settings for registries. */
export interface RegistryConfig {
  /** For a registry's host, the addresses to try before it: `host[:port][/prefix]`, or a URL; `http://` permits plain HTTP. */
  readonly mirrors?: Readonly<Record<string, readonly string[]>>;
  /** Hosts, with port, for which plain HTTP and certificates that do not verify are permitted. */
  readonly insecureRegistries?: readonly string[];
  /** A file as `docker login` writes it. */
  readonly credentialsFile?: string;
}

export interface RegistryOptions {
  readonly reference: RegistryReference;
  readonly config: RegistryConfig;
  /** By explicit flag for this pull. */
  readonly insecure: boolean;
  readonly platform: Platform;
  readonly blobs: BlobStore;
  readonly foreign: ForeignPaths;
  readonly clock: Clock;
  readonly logger: Logger;
}

/** One image of a registry. Dispose of it when its layers are unpacked. */
export class RegistryImage implements AsyncDisposable {
  readonly #options: RegistryOptions;
  readonly #name: string;
  #endpoints: readonly RegistryClient[] = [];

  constructor(options: RegistryOptions) {
    this.#options = options;
    this.#name = formatImageReference(options.reference);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#endpoints.map((endpoint) => endpoint[Symbol.asyncDispose]()));
  }

  /**
   * Resolves the reference to the manifest for this platform, and reads its config.
   * @throws {DroverError} registry-unreachable, registry-denied, image-not-found, corrupt-image, too-large
   */
  async find(signal: AbortSignal): Promise<FoundImage> {
    const { reference, platform } = this.#options;
    this.#endpoints = await this.#connect(signal);
    let { digest, data } = await this.#manifest(reference.digest ?? (reference.tag as string), signal);
    let manifest = parseManifest(data);
    // An index may hold an index; deeper nesting is no image.
    for (let depth = 0; manifest.kind === 'index'; depth++) {
      if (depth >= 3)
        throw new DroverError('corrupt-image', `the image ${this.#name} nests its indexes too deeply`, { hint: 'try another tag' });
      const chosen = choosePlatform(manifest.manifests, platform, this.#name);
      ({ digest, data } = await this.#manifest(chosen.digest, signal));
      manifest = parseManifest(data);
    }
    const parsed = parseConfig(await this.#small(manifest.config, maxImageConfigBytes, signal));
    const { layers } = manifest;
    if (parsed.diffIds.length !== layers.length) {
      throw new DroverError(
        'corrupt-image',
        `the image ${this.#name} has ${layers.length} layers, but ${parsed.diffIds.length} in its config`,
        {
          hint: 'the image was built wrongly; try another tag',
        },
      );
    }
    return { digest, config: parsed.config, layers: layers.map((layer, i) => this.#layer(layer, parsed.diffIds[i] as string)) };
  }

  #layer(descriptor: Descriptor, diffId: string): FoundLayer {
    const { blobs } = this.#options;
    return {
      diffId,
      size: descriptor.size,
      fetch: async (onBytes, signal) => {
        const path = await blobs.fetch(descriptor, this.#openBlob(descriptor), onBytes, signal);
        // Verified during the download.
        return { path, offset: 0, size: descriptor.size, digest: undefined };
      },
      discard: () => blobs.remove(descriptor.digest),
    };
  }

  #openBlob({ digest }: Descriptor): OpenBlob {
    return (offset, signal) =>
      this.#anywhere(async (endpoint) => {
        const headers: Record<string, string> = offset === 0 ? {} : { range: `bytes=${offset}-` };
        const response = await endpoint.get(`blobs/${digest}`, headers, signal);
        const begins = response.status === 206 ? Number(/^bytes (\d+)-/.exec(response.headers['content-range'] ?? '')?.[1]) : 0;
        if (begins !== 0 && begins !== offset) {
          response.body.destroy();
          throw new DroverError(
            'registry-unreachable',
            `the registry ${endpoint.host} returned another part of a layer than was requested`,
          );
        }
        return { offset: begins, stream: response.body as AsyncIterable<Uint8Array> };
      });
  }

  async #manifest(target: string, signal: AbortSignal): Promise<{ digest: string; data: Buffer }> {
    const isDigest = target.includes(':');
    return this.#anywhere(async (endpoint) => {
      const response = await endpoint.get(`manifests/${target}`, { accept: [...indexTypes, ...manifestTypes].join(', ') }, signal);
      const data = await readBounded(response.body as AsyncIterable<Buffer>, maxManifestBytes, `the manifest of ${this.#name}`);
      // Verified against the requested digest, or against the registry's own header (distribution-spec, Docker-Content-Digest).
      const expected = isDigest ? target : response.headers['docker-content-digest'];
      const digest = digestOf(data, expected === undefined ? 'sha256' : parseDigest(expected).algorithm);
      if (expected !== undefined && digest !== expected) {
        throw new DroverError('corrupt-image', `the manifest of ${this.#name} has the digest ${digest} instead of ${expected}`, {
          hint: damagedHint,
        });
      }
      return { digest, data };
    });
  }

  async #small(descriptor: Descriptor, limit: number, signal: AbortSignal): Promise<Buffer> {
    if (descriptor.size > limit) {
      throw new DroverError('too-large', `the config of ${this.#name} has more than ${formatBytes(limit)}`, { hint: 'use another image' });
    }
    return this.#anywhere(async (endpoint) => {
      const response = await endpoint.get(`blobs/${descriptor.digest}`, {}, signal);
      const data = await readBounded(response.body as AsyncIterable<Buffer>, limit, `the config of ${this.#name}`);
      if (digestOf(data, parseDigest(descriptor.digest).algorithm) !== descriptor.digest) {
        throw new DroverError('corrupt-image', `the config of ${this.#name} does not have the digest of its manifest`, {
          hint: damagedHint,
        });
      }
      return data;
    });
  }

  /** Tries the mirrors in their order, then the registry itself, whose error counts. */
  async #anywhere<T>(attempt: (endpoint: RegistryClient) => Promise<T>): Promise<T> {
    let last: unknown;
    for (const endpoint of this.#endpoints) {
      try {
        return await attempt(endpoint);
      } catch (error) {
        // The next one may have the image, whatever is wrong with a mirror.
        if (!hasCode(error, 'registry-unreachable', 'registry-denied', 'image-not-found', 'corrupt-image')) throw error;
        if (last !== undefined || this.#endpoints.length > 1) {
          this.#options.logger.warn(
            { registry: endpoint.host, image: this.#name, err: error.message },
            'an image could not be read from a registry',
          );
        }
        last = error;
      }
    }
    throw last;
  }

  async #connect(signal: AbortSignal): Promise<RegistryClient[]> {
    const { reference, config, clock, foreign } = this.#options;
    const insecure = (host: string): boolean => this.#options.insecure || (config.insecureRegistries ?? []).includes(host);
    const endpoints: RegistryClient[] = [];
    const add = async (base: string, registry: string, permitted: boolean): Promise<void> => {
      const endpoint: Endpoint = {
        base,
        insecure: permitted,
        credentials: await readCredentials(config.credentialsFile, registry, foreign, signal),
      };
      endpoints.push(new RegistryClient(endpoint, reference.repository, clock));
    };
    for (const mirror of config.mirrors?.[reference.registry] ?? []) {
      const hasScheme = /^https?:\/\//.test(mirror);
      const url = hasScheme ? mirror : `https://${mirror}`;
      if (!URL.canParse(url)) {
        throw new DroverError('invalid-config', `${JSON.stringify(mirror)} is no address of a mirror`, {
          hint: 'write host:port, or a URL',
        });
      }
      const { host } = new URL(url);
      await add(url.replace(/\/+$/, ''), host, url.startsWith('http://') || insecure(host));
      if (!hasScheme && insecure(host)) await add(`http://${mirror.replace(/\/+$/, '')}`, host, true);
    }
    const host = reference.registry === 'docker.io' ? 'registry-1.docker.io' : reference.registry;
    // Where plain HTTP is permitted it is the fallback: a registry that speaks TLS gets TLS.
    if (insecure(reference.registry)) {
      const plain = await speaksPlainHttp(host);
      await add(`${plain ? 'http' : 'https'}://${host}`, reference.registry, true);
    } else {
      await add(`https://${host}`, reference.registry, false);
    }
    return endpoints;
  }
}

const damagedHint = 'try again; if the error repeats, the registry or the network path damages the image';

/** Finds out without secrets whether a host speaks plain HTTP. Unreachable counts as TLS: the request that follows reports why. */
async function speaksPlainHttp(host: string): Promise<boolean> {
  try {
    const response = await fetch(`http://${host}/v2/`, { redirect: 'manual', signal: AbortSignal.timeout(5000) });
    await response.body?.cancel();
    // A TLS server responds with 400 to plain HTTP.
    return response.status !== 400;
  } catch {
    return false;
  }
}

async function readBounded(body: AsyncIterable<Buffer>, limit: number, what: string): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of body) {
      size += chunk.length;
      if (size > limit) throw new DroverError('too-large', `${what} has more than ${formatBytes(limit)}`, { hint: 'use another image' });
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof DroverError) throw error;
    const message = error instanceof Error ? error.message : String(error);
    throw new DroverError('registry-unreachable', `the registry interrupted ${what}: ${message}`, {
      hint: 'try again',
      cause: error,
    });
  }
  return Buffer.concat(chunks);
}
