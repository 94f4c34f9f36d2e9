import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';

export interface PullOptions {
  /** A host id or name; absent pulls on every ready host. */
  readonly host?: string;
  /** Allows plain HTTP and unverified TLS to the registry. */
  readonly insecure?: boolean;
  /** Ends the watching; the pull goes on (L-21). */
  readonly signal?: AbortSignal;
}

export interface PruneOptions {
  readonly host?: string;
  readonly olderThanSeconds?: number;
  readonly signal?: AbortSignal;
}

/** Images on hosts. Hosts that could not be asked are listed in `failures`. */
export interface ImagesApi {
  /** Progress of each host; its last message carries `image` or `error`. */
  pull(image: string, options?: PullOptions): AsyncIterable<api.PullImageResponse>;
  list(options?: { readonly host?: string; readonly signal?: AbortSignal }): Promise<api.ListImagesResponse>;
  remove(image: string, options?: { readonly host?: string; readonly signal?: AbortSignal }): Promise<api.RemoveImageResponse>;
  prune(options?: PruneOptions): Promise<api.PruneImagesResponse>;
}

export function imagesApi(client: Client<typeof api.ImageService>, calls: Calls): ImagesApi {
  return {
    pull: (image, { host = '', insecure = false, signal } = {}) =>
      calls.stream(client.pullImage({ image, host, insecure }, withSignal(signal))),
    list: ({ host = '', signal } = {}) => calls.ask(() => client.listImages({ host }, withSignal(signal)), signal),
    remove: (image, { host = '', signal } = {}) => calls.ask(() => client.removeImage({ image, host }, withSignal(signal)), signal),
    prune: ({ host = '', olderThanSeconds = 0, signal } = {}) =>
      calls.ask(() => client.pruneImages({ host, olderThanSeconds: BigInt(olderThanSeconds) }, withSignal(signal)), signal),
  };
}
