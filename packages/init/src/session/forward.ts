import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { DroverError } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { forwardConnectMs, maxChunkBytes } from '../limits.ts';
import type { Call, Reply } from '../server/index.ts';

/** Carries bytes between a call and a TCP port in the sandbox. Each direction ends independently, and has backpressure (I-39). */
export async function forward(call: Call<init.ForwardFrame, Reply<'forward'>>): Promise<void> {
  const requests = call.requests[Symbol.asyncIterator]();
  const first = await requests.next();
  const port = first.done === true || first.value.payload.case !== 'port' ? 0 : first.value.payload.value;
  if (port < 1 || port > 65_535) throw new DroverError('invalid-argument', 'the first frame must name a port from 1 to 65535');
  const socket = await dial(port, call.signal);
  const abort = (): void => void socket.destroy();
  call.signal.addEventListener('abort', abort, { once: true });
  try {
    // The call ends with the second direction. A reset ends both, also when one has ended before.
    const reset = new Promise<never>((_resolve, reject) => void socket.on('error', reject));
    await Promise.race([Promise.all([inward(requests, socket), outward(socket, call)]), reset]);
  } catch (error) {
    call.signal.throwIfAborted();
    if (error instanceof DroverError) throw error;
    throw new DroverError('unavailable', `the connection to port ${port} in the sandbox broke`, { cause: error });
  } finally {
    call.signal.removeEventListener('abort', abort);
    socket.destroy();
  }
}

/** Carries the client's bytes until its end or its eof. */
async function inward(requests: AsyncIterator<init.ForwardFrame>, socket: Socket): Promise<void> {
  for (;;) {
    const next = await requests.next();
    if (next.done === true || next.value.payload.case === 'eof') break;
    if (next.value.payload.case !== 'data') throw new DroverError('protocol-violation', 'only data may follow the port');
    if (socket.destroyed) return;
    if (!socket.write(next.value.payload.value)) await Promise.race([once(socket, 'drain'), once(socket, 'close')]);
  }
  socket.end();
}

async function outward(socket: Socket, call: Call<init.ForwardFrame, Reply<'forward'>>): Promise<void> {
  // The end of the program's output must not end its input.
  for await (const data of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    for (let at = 0; at < data.length; at += maxChunkBytes) {
      await call.send({ payload: { case: 'data', value: data.subarray(at, at + maxChunkBytes) } });
    }
  }
  await call.send({ payload: { case: 'eof', value: true } });
}

/** Connects to localhost over IPv4, then IPv6: a program may listen on one of them only. */
async function dial(port: number, signal: AbortSignal): Promise<Socket> {
  let cause: unknown;
  for (const host of ['127.0.0.1', '::1']) {
    const socket = connect({ host, port, allowHalfOpen: true, noDelay: true });
    // A reset before the socket has a reader must not end init.
    socket.on('error', () => undefined);
    try {
      await once(socket, 'connect', { signal: AbortSignal.any([signal, AbortSignal.timeout(forwardConnectMs)]) });
      return socket;
    } catch (error) {
      socket.destroy();
      signal.throwIfAborted();
      cause ??= error;
    }
  }
  // Not a transient code: a client that retries gets the same.
  throw new DroverError('failed-precondition', `nothing listens on port ${port} in the sandbox`, {
    hint: 'start a program in the sandbox that listens on it',
    cause,
  });
}
