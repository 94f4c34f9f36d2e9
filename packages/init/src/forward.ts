import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { DroverError } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { forwardConnectMs, maxChunkBytes } from './limits.ts';
import type { Call, Reply } from './server/grpc.ts';

/** Carries bytes between a call and a TCP port in the sandbox; each direction ends on its own, each waits for the other side (I-39). */
export async function forward(call: Call<init.ForwardFrame, Reply<'forward'>>): Promise<void> {
  const requests = call.requests[Symbol.asyncIterator]();
  const first = await requests.next();
  const port = first.done === true || first.value.payload.case !== 'port' ? 0 : first.value.payload.value;
  if (port < 1 || port > 65_535) throw new DroverError('invalid-argument', 'the first frame must name a port from 1 to 65535');
  const socket = await dial(port, call.signal);
  const abort = (): void => void socket.destroy();
  call.signal.addEventListener('abort', abort, { once: true });
  try {
    const inward = (async () => {
      for (;;) {
        const next = await requests.next();
        if (next.done === true) break;
        if (next.value.payload.case !== 'data') throw new DroverError('protocol-violation', 'only data may follow the port');
        if (socket.destroyed) return;
        if (!socket.write(next.value.payload.value)) await Promise.race([once(socket, 'drain'), once(socket, 'close')]);
      }
      socket.end();
    })();
    const outward = (async () => {
      for await (const data of socket as AsyncIterable<Buffer>) {
        for (let at = 0; at < data.length; at += maxChunkBytes) {
          await call.send({ payload: { case: 'data', value: data.subarray(at, at + maxChunkBytes) } });
        }
      }
    })();
    // The answer ends when the server's side has: a client that goes on sending learns it from the end of the call.
    const failed = inward.then(() => new Promise<never>(() => undefined));
    await Promise.race([outward, failed]);
  } catch (error) {
    call.signal.throwIfAborted();
    if (error instanceof DroverError) throw error;
    throw new DroverError('unavailable', `the connection to port ${port} in the sandbox broke`, { cause: error });
  } finally {
    call.signal.removeEventListener('abort', abort);
    socket.destroy();
  }
}

/** Localhost over IPv4, then IPv6: what listens on one of them only is found. */
async function dial(port: number, signal: AbortSignal): Promise<Socket> {
  let cause: unknown;
  for (const host of ['127.0.0.1', '::1']) {
    const socket = connect({ host, port, allowHalfOpen: true, noDelay: true });
    try {
      await once(socket, 'connect', { signal: AbortSignal.any([signal, AbortSignal.timeout(forwardConnectMs)]) });
      return socket;
    } catch (error) {
      socket.on('error', () => undefined);
      socket.destroy();
      signal.throwIfAborted();
      cause ??= error;
    }
  }
  throw new DroverError('unavailable', `nothing answers on port ${port} in the sandbox`, {
    hint: 'check that the program in the sandbox listens on it',
    cause,
  });
}
