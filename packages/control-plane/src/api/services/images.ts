import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api, link } from '@drover/protocol';
import { isDigest, parseImageReference } from '@drover/spec';
import type { Operation } from '../../hub/index.ts';
import type { HostRow } from '../../model/index.ts';
import { hostError } from '../convert/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { callHosts, failureError, forEachHost, hostsOf } from '../reach/index.ts';
import { PullProgress } from './pull-progress.ts';

/** Images belong to hosts: each call goes to one host or to every usable one, and reports failures host by host. */
export function imageService(context: ApiContext): ServiceImpl<typeof api.ImageService> {
  return {
    pullImage: (request, { signal }) => pull(context, request, signal),

    async listImages(request, { signal }) {
      const images: api.HostImage[] = [];
      const operation = { case: 'listImages', value: create(link.ListImagesSchema) } as const;
      const failures = await call(context, request.host, operation, 'images', signal, ({ images: listed }, { id, name }) => {
        for (const image of listed) images.push(create(api.HostImageSchema, { hostId: id, hostName: name, image }));
      });
      return create(api.ListImagesResponseSchema, { images, failures });
    },

    async removeImage(request, { signal }) {
      if (!isDigest(request.image)) parseImageReference(request.image);
      const operation = { case: 'removeImage', value: create(link.RemoveImageSchema, { image: request.image }) } as const;
      let removed = 0;
      const failures = await call(context, request.host, operation, undefined, signal, () => removed++);
      // A host without the image is a failure only if no host had it.
      const real = failures.filter(({ error }) => error?.code !== 'image-not-found');
      const [first] = failures;
      if (removed === 0 && real.length === 0 && first !== undefined) throw failureError(first);
      return create(api.RemoveImageResponseSchema, { failures: real });
    },

    async pruneImages({ host, olderThanSeconds }, { signal }) {
      const operation = { case: 'pruneImages', value: create(link.PruneImagesSchema, { olderThanSeconds }) } as const;
      const removed = new Set<string>();
      let freedBytes = 0n;
      const failures = await call(context, host, operation, 'pruned', signal, (pruned) => {
        for (const image of pruned.removed) removed.add(image);
        freedBytes += pruned.freedBytes;
      });
      return create(api.PruneImagesResponseSchema, { removed: [...removed], freedBytes, failures });
    },
  };
}

/** As `callHosts`; a call to one named host fails as that host did. */
async function call<Case extends Parameters<typeof callHosts>[3]>(
  context: ApiContext,
  reference: string,
  operation: Operation,
  expected: Case,
  signal: AbortSignal,
  received: Parameters<typeof callHosts<Case>>[4],
): Promise<api.HostFailure[]> {
  const failures = await callHosts(context, await hostsOf(context, reference), () => operation, expected, received, signal);
  const [only] = failures;
  if (reference !== '' && only !== undefined) throw failureError(only);
  return failures;
}

async function* pull(context: ApiContext, { image, insecure, host: reference }: api.PullImageRequest, signal: AbortSignal) {
  parseImageReference(image);
  const hosts = await hostsOf(context, reference);
  if (hosts.length === 0) {
    throw new DroverError('host-unavailable', 'no host is ready', { hint: '`drover host ls` lists hosts; `drover up` starts one here' });
  }
  const progress = new PullProgress();
  const value = create(link.PullImageSchema, { image, insecure });
  const pulls = forEachHost(hosts, async (host) => await pullOn(context, host, { case: 'pullImage', value }, progress, signal));
  const ended = pulls.finally(() => progress.end());
  yield* progress.read(signal);
  await ended;
}

/** Never rejects: a failure is the last message of its host. */
async function pullOn(
  context: ApiContext,
  host: HostRow,
  operation: Operation,
  progress: PullProgress,
  signal: AbortSignal,
): Promise<void> {
  const about = { hostId: host.id, hostName: host.name };
  try {
    const result = await context.hub.call(host.id, operation, {
      signal,
      onProgress: ({ message, done, total, layersDone, layersTotal }) =>
        progress.update(create(api.PullImageResponseSchema, { ...about, message, done, total, layersDone, layersTotal })),
    });
    if (result.case !== 'image') throw new DroverError('protocol-violation', `host ${host.name} responded to a pull with something else`);
    progress.finish(create(api.PullImageResponseSchema, { ...about, image: result.value }));
  } catch (error) {
    progress.finish(create(api.PullImageResponseSchema, { ...about, error: hostError(context, host, error) }));
  }
}
