import { create, type MessageInitShape } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api, init, link } from '@drover/protocol';
import { maxPathBytes, parseUser } from '@drover/spec';
import { type ApiContext, StreamInput } from '../edge/index.ts';
import {
  hasEnded,
  endedError,
  refusePaused,
  brokenCallError,
  sessionClient,
  hostStream,
  inTime,
  silentError,
  UploadWatch,
} from '../reach/index.ts';
import { initSilenceMs } from '../../limits.ts';
import type { SandboxRow } from '../../model/index.ts';

type Methods = Pick<ServiceImpl<typeof api.SandboxService>, 'copyIn' | 'copyOut'>;

/** Copies into and out of a sandbox. A message is read after the previous one was taken, which is the backpressure (I-39). */
export function copyMethods(context: ApiContext): Methods {
  return {
    async copyIn(requests, { signal }) {
      const input = new StreamInput(requests);
      const first = await input.first(signal);
      if (first.payload.case !== 'target') throw new DroverError('protocol-violation', 'the first message of a copy must be its target');
      const target = first.payload.value;
      const { placeAsCp, keepOwners, chown } = target;
      parseUser(chown);
      const value = create(init.CopyInTargetSchema, { path: pathOf(target), placeAsCp, keepOwners, chown });
      const row = await context.store.sandboxes.find(target.sandbox);
      refusePaused(row);
      const client = await sessionClient(context, row, signal);
      const watch = new UploadWatch(initSilenceMs, context.clock, (ms) => silentError(row, 'copy', ms));
      const either = AbortSignal.any([signal, watch.signal]);
      try {
        const copying = client.copyIn(watch.watch(tarOf(input, value, either)), { signal: either });
        const { entries, bytes, leftOut, leftOutCount } = await Promise.race([copying, watch.expired]);
        const named = leftOut.map(({ path, reason }) => create(api.LeftOutSchema, { path, reason }));
        return create(api.CopyInResponseSchema, { entries, bytes, leftOut: named, leftOutCount });
      } catch (thrown) {
        if (watch.signal.aborted) throw watch.signal.reason;
        throw await brokenCallError(context, row, thrown);
      } finally {
        watch.stop();
      }
    },

    async *copyOut(request, { signal }) {
      const copy = { path: pathOf(request), followLinks: request.followLinks };
      const row = await context.store.sandboxes.find(request.sandbox);
      refusePaused(row);
      if (hasEnded(row)) {
        yield* copyFromHost(context, row, copy, signal);
        return;
      }
      const client = await sessionClient(context, row, signal);
      const call = new AbortController();
      const messages = client.copyOut(copy, { signal: AbortSignal.any([signal, call.signal]) });
      const late = (ms: number): DroverError => silentError(row, 'copy', ms);
      try {
        for await (const { tar, leftOut } of inTime(messages, context.clock, () => initSilenceMs, late)) {
          if (leftOut === undefined) yield create(api.CopyOutResponseSchema, { tar });
          else yield leftOutOf(leftOut);
        }
      } catch (thrown) {
        throw await brokenCallError(context, row, thrown);
      } finally {
        call.abort();
      }
    },
  };
}

/** The host has the files of a sandbox that has ended. */
async function* copyFromHost(
  context: ApiContext,
  row: SandboxRow,
  copy: MessageInitShape<typeof link.HostCopyOutSchema>,
  signal: AbortSignal,
): AsyncGenerator<api.CopyOutResponse, void, undefined> {
  if (row.hostId === undefined) throw endedError(row);
  const source = { case: 'copyOut', value: create(link.HostCopyOutSchema, copy) } as const;
  for await (const message of hostStream(context, row, source, 'copy', signal)) {
    if (message.case === 'tar') yield create(api.CopyOutResponseSchema, { tar: message.value });
    else if (message.case === 'leftOut') yield leftOutOf(message.value);
  }
}

function leftOutOf({ path, reason }: { readonly path: Uint8Array; readonly reason: string }): api.CopyOutResponse {
  return create(api.CopyOutResponseSchema, { leftOut: create(api.LeftOutSchema, { path, reason }) });
}

/** A path in the sandbox, as bytes. @throws {DroverError} invalid-argument */
function pathOf({ path, pathBytes }: { readonly path: string; readonly pathBytes: Uint8Array }): Uint8Array {
  const bytes = pathBytes.length > 0 ? pathBytes : Buffer.from(path);
  if (bytes.length === 0 || bytes.length > maxPathBytes || bytes.includes(0)) {
    throw new DroverError('invalid-argument', 'this cannot be a path in the sandbox', { hint: 'for instance /tmp/results' });
  }
  return bytes;
}

async function* tarOf(
  input: StreamInput<api.CopyInRequest>,
  target: init.CopyInTarget,
  signal: AbortSignal,
): AsyncGenerator<init.CopyInRequest> {
  yield create(init.CopyInRequestSchema, { payload: { case: 'target', value: target } });
  for (;;) {
    const message = await input.next(signal);
    if (message === undefined) return;
    if (message.payload.case !== 'tar')
      throw new DroverError('protocol-violation', 'after its target, a copy consists of bytes of a tar stream');
    yield create(init.CopyInRequestSchema, { payload: { case: 'tar', value: message.payload.value } });
  }
}
