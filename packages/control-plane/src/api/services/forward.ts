import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api, init } from '@drover/protocol';
import { isPort } from '@drover/spec';
import { StreamInput, type ApiContext } from '../edge/index.ts';
import { brokenCallError, refusePaused, sessionClient } from '../reach/index.ts';

/** One connection to a TCP port in a sandbox. A message is read after the previous one was taken, which is the backpressure (I-39). */
export function forwardMethod(context: ApiContext): ServiceImpl<typeof api.SandboxService>['forward'] {
  return async function* forward(requests, { signal }) {
    const input = new StreamInput(requests);
    const first = await input.first(signal);
    if (first.payload.case !== 'target') throw new DroverError('protocol-violation', 'the first message of a forward must be its target');
    const { sandbox, port } = first.payload.value;
    if (!isPort(port)) throw new DroverError('invalid-argument', `${port} is not a port`, { hint: 'use a number from 1 to 65535' });
    const row = await context.store.sandboxes.find(sandbox);
    refusePaused(row);
    const client = await sessionClient(context, row, signal);
    try {
      for await (const { payload } of client.forward(bytesOf(input, port, signal), { signal })) {
        if (payload.case === 'data' || payload.case === 'eof') yield create(api.ForwardFrameSchema, { payload });
      }
    } catch (thrown) {
      throw await brokenCallError(context, row, thrown);
    }
  };
}

async function* bytesOf(input: StreamInput<api.ForwardFrame>, port: number, signal: AbortSignal): AsyncGenerator<init.ForwardFrame> {
  yield create(init.ForwardFrameSchema, { payload: { case: 'port', value: port } });
  for (;;) {
    const message = await input.next(signal);
    // The caller's end closes this direction only.
    if (message === undefined || message.payload.case === 'eof') return;
    if (message.payload.case !== 'data') throw new DroverError('protocol-violation', 'after its target, a forward consists of data');
    yield create(init.ForwardFrameSchema, { payload: message.payload });
  }
}
