import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import type { Calls } from './calls.ts';

export interface PullOptions {
  /** A host id or name; absent: every ready host. */
  readonly host?: string;
  /** Allows plain HTTP to the registry, and a certificate that does not verify. */
  readonly insecure?: boolean;
  /** Ends the progress reports; the pull goes on (L-21). */
  readonly signal?: AbortSignal;
}

export interface HostOptions {
  /** A host id or name; absent: every ready host. */
  readonly host?: string;
  readonly signal?: AbortSignal;
}

export interface PruneOptions extends HostOptions {
  readonly olderThanSeconds?: number;
}

/** Images on hosts. `failures` lists the hosts that did not respond. */
export type ImagesApi = ReturnType<typeof imagesApi>;

export function imagesApi(client: Client<typeof api.ImageService>, calls: Calls) {
  return {
    /** The progress of each host; the last message of a host has `image` or `error`. */
    pull: (image: string, { host = '', insecure = false, signal }: PullOptions = {}): AsyncIterable<api.PullImageResponse> =>
      calls.stream((options) => client.pullImage({ image, host, insecure }, options), signal),
    list: ({ host = '', signal }: HostOptions = {}): Promise<api.ListImagesResponse> =>
      calls.ask((options) => client.listImages({ host }, options), signal),
    remove: (image: string, { host = '', signal }: HostOptions = {}): Promise<api.RemoveImageResponse> =>
      calls.ask((options) => client.removeImage({ image, host }, options), signal),
    prune: ({ host = '', olderThanSeconds = 0, signal }: PruneOptions = {}): Promise<api.PruneImagesResponse> =>
      calls.ask((options) => client.pruneImages({ host, olderThanSeconds: BigInt(olderThanSeconds) }, options), signal),
  };
}
