import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api, init } from '@drover/protocol';
import type { ApiContext } from './context.ts';
import { refusePaused } from './ended.ts';
import { StreamInput } from './input.ts';
import { isPort } from './parse.ts';

type Methods = Pick<ServiceImpl<typeof api.SandboxService>, 'copyIn' | 'copyOut' | 'forward'>;

/** Byte streams into and out of a sandbox. One message is read when the one before was taken: that is the backpressure (I-39). */
export function streamMethods(context: ApiContext): Methods {
  return {
    async copyIn(requests, { signal }) {
      const input = new StreamInput(requests);
      const first = await input.first(signal);
      if (first.payload.case !== 'target') throw new DroverError('protocol-violation', 'the first message of a copy must be its target');
      const { sandbox, path } = first.payload.value;
      checkPath(path);
      const row = await context.store.sandboxes.find(sandbox);
      refusePaused(row);
      const client = await context.sessions.client(row.id, signal);
      const answer = await client.copyIn(tarOf(input, path, signal), { signal });
      return create(api.CopyInResponseSchema, { entries: answer.entries, bytes: answer.bytes });
    },

    async *copyOut(request, { signal }) {
      checkPath(request.path);
      const row = await context.store.sandboxes.find(request.sandbox);
      refusePaused(row);
      const client = await context.sessions.client(row.id, signal);
      for await (const { tar } of client.copyOut({ path: request.path }, { signal })) yield create(api.CopyOutResponseSchema, { tar });
    },

    async *forward(requests, { signal }) {
      const input = new StreamInput(requests);
      const first = await input.first(signal);
      if (first.payload.case !== 'target') throw new DroverError('protocol-violation', 'the first message of a forward must be its target');
      const { sandbox, port } = first.payload.value;
      if (!isPort(port)) throw new DroverError('invalid-argument', `${port} is not a port`, { hint: 'use a number from 1 to 65535' });
      const row = await context.store.sandboxes.find(sandbox);
      refusePaused(row);
      const client = await context.sessions.client(row.id, signal);
      for await (const { payload } of client.forward(bytesOf(input, port, signal), { signal })) {
        if (payload.case === 'data' || payload.case === 'eof') yield create(api.ForwardFrameSchema, { payload });
      }
    },
  };
}

function checkPath(path: string): void {
  if (path === '' || path.length > 4096 || path.includes('\0')) {
    throw new DroverError('invalid-argument', 'this cannot be a path in the sandbox', { hint: 'write for instance /tmp/results' });
  }
}

async function* tarOf(input: StreamInput<api.CopyInRequest>, path: string, signal: AbortSignal): AsyncGenerator<init.CopyInRequest> {
  yield create(init.CopyInRequestSchema, { payload: { case: 'path', value: path } });
  for (;;) {
    const message = await input.next(signal);
    if (message === undefined) return;
    if (message.payload.case !== 'tar') throw new DroverError('protocol-violation', 'a copy goes on with bytes of a tar stream');
    yield create(init.CopyInRequestSchema, { payload: { case: 'tar', value: message.payload.value } });
  }
}

async function* bytesOf(input: StreamInput<api.ForwardFrame>, port: number, signal: AbortSignal): AsyncGenerator<init.ForwardFrame> {
  yield create(init.ForwardFrameSchema, { payload: { case: 'port', value: port } });
  for (;;) {
    const message = await input.next(signal);
    // The caller's end ends this direction alone.
    if (message === undefined || message.payload.case === 'eof') return;
    if (message.payload.case !== 'data') throw new DroverError('protocol-violation', 'a forward goes on with data');
    yield create(init.ForwardFrameSchema, { payload: message.payload });
  }
}
