import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api, errorFromWire, link } from '@drover/protocol';
import { isDigest, parseImageReference } from '@drover/spec';
import type { Operation, ResultValue } from '../../hub/index.ts';
import { hostCallTimeoutMs } from '../../limits.ts';
import { hostState, type HostRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { hostError, hostFailure } from '../convert/index.ts';
import { eachOf } from '../reach/index.ts';

/** Images are the hosts' own: each call goes to one host or to every ready one, and tells what failed host by host. */
export function imageService(context: ApiContext): ServiceImpl<typeof api.ImageService> {
  const { hub } = context;

  async function targets(reference: string): Promise<readonly HostRow[]> {
    if (reference !== '') return [await context.store.hosts.find(reference)];
    const rows = await context.store.hosts.list();
    return rows.filter((row) => {
      const state = hostState(row);
      return state === 'ready' || state === 'cordoned' || state === 'draining';
    });
  }

  /** Asks the hosts, so many at once; one that fails does not keep the others from answering. */
  async function ask(
    reference: string,
    operation: Operation,
    signal: AbortSignal,
    take: (host: HostRow, value: ResultValue) => void,
  ): Promise<api.HostFailure[]> {
    const failures: api.HostFailure[] = [];
    await eachOf(await targets(reference), async (host) => {
      const deadline = new Date(context.clock.now() + hostCallTimeoutMs);
      try {
        take(
          host,
          await hub.call(host.id, operation, { signal: AbortSignal.any([signal, AbortSignal.timeout(hostCallTimeoutMs)]), deadline }),
        );
      } catch (error) {
        signal.throwIfAborted();
        failures.push(hostFailure(context, host, error));
      }
    });
    // A call about one host fails as that host did.
    const [only] = failures;
    if (reference !== '' && only?.error !== undefined) throw failed(only);
    return failures;
  }

  return {
    async *pullImage(request, { signal }) {
      parseImageReference(request.image);
      const hosts = await targets(request.host);
      if (hosts.length === 0) throw noHosts();
      const news = new PullNews();
      const value = create(link.PullImageSchema, { image: request.image, insecure: request.insecure });
      const all = eachOf(hosts, async (host) => {
        const about = { hostId: host.id, hostName: host.name };
        try {
          const result = await hub.call(
            host.id,
            { case: 'pullImage', value },
            {
              signal,
              onProgress: ({ message, done, total, layersDone, layersTotal }) =>
                news.progress(create(api.PullImageResponseSchema, { ...about, message, done, total, layersDone, layersTotal })),
            },
          );
          if (result.case !== 'image') throw new DroverError('protocol-violation', `host ${host.name} answered a pull with something else`);
          news.last(create(api.PullImageResponseSchema, { ...about, image: result.value }));
        } catch (error) {
          news.last(create(api.PullImageResponseSchema, { ...about, error: hostError(context, host, error) }));
        }
      }).finally(() => news.end());
      yield* news.read(signal);
      await all;
    },

    async listImages(request, { signal }) {
      const images: api.HostImage[] = [];
      const failures = await ask(request.host, { case: 'listImages', value: create(link.ListImagesSchema) }, signal, (host, value) => {
        if (value.case !== 'images') return;
        for (const image of value.value.images) {
          images.push(create(api.HostImageSchema, { hostId: host.id, hostName: host.name, image }));
        }
      });
      return create(api.ListImagesResponseSchema, { images, failures });
    },

    async removeImage(request, { signal }) {
      if (!isDigest(request.image)) parseImageReference(request.image);
      const value = create(link.RemoveImageSchema, { image: request.image });
      let removed = 0;
      const failures = await ask(request.host, { case: 'removeImage', value }, signal, () => removed++);
      // Hosts that do not have it are no failure when another one had it.
      const real = failures.filter(({ error }) => error?.code !== 'image-not-found');
      const [first] = failures;
      if (removed === 0 && real.length === 0 && first !== undefined) throw failed(first);
      return create(api.RemoveImageResponseSchema, { failures: real });
    },

    async pruneImages(request, { signal }) {
      const value = create(link.PruneImagesSchema, { olderThanSeconds: request.olderThanSeconds });
      const removed = new Set<string>();
      let freedBytes = 0n;
      const failures = await ask(request.host, { case: 'pruneImages', value }, signal, (_host, result) => {
        if (result.case !== 'pruned') return;
        for (const image of result.value.removed) removed.add(image);
        freedBytes += result.value.freedBytes;
      });
      return create(api.PruneImagesResponseSchema, { removed: [...removed], freedBytes, failures });
    },
  };
}

function noHosts(): DroverError {
  return new DroverError('host-unavailable', 'no host is ready', { hint: '`drover host ls` shows them; `drover up` starts one here' });
}

function failed(failure: api.HostFailure): DroverError {
  const { error } = failure;
  return error === undefined ? new DroverError('internal', 'a host failed') : errorFromWire(error);
}

/** News of many pulls for one reader: the newest progress of each host, and every last word. A slow reader skips progress. */
class PullNews {
  readonly #progress = new Map<string, api.PullImageResponse>();
  readonly #last: api.PullImageResponse[] = [];
  #ended = false;
  #wake: (() => void) | undefined;

  progress(news: api.PullImageResponse): void {
    this.#progress.set(news.hostId, news);
    this.#wake?.();
  }

  last(news: api.PullImageResponse): void {
    this.#progress.delete(news.hostId);
    this.#last.push(news);
    this.#wake?.();
  }

  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  async *read(signal: AbortSignal): AsyncGenerator<api.PullImageResponse> {
    const wake = (): void => this.#wake?.();
    signal.addEventListener('abort', wake);
    try {
      for (;;) {
        signal.throwIfAborted();
        const ready = [...this.#progress.values(), ...this.#last.splice(0)];
        this.#progress.clear();
        yield* ready;
        if (ready.length > 0) continue;
        if (this.#ended) return;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = undefined;
      }
    } finally {
      signal.removeEventListener('abort', wake);
    }
  }
}
