import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { DroverError } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { forwardConnectMs, maxChunkBytes } from '../limits.ts';
import type { Call, Reply } from '../server/index.ts';

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
    // Each direction ends on its own, and the call with the second one; a reset ends both, also when only one of them is left.
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

/** What the client sends, until its end or its eof. */
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
  // The end of what the program sends must not end what it receives.
  for await (const data of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    for (let at = 0; at < data.length; at += maxChunkBytes) {
      await call.send({ payload: { case: 'data', value: data.subarray(at, at + maxChunkBytes) } });
    }
  }
  await call.send({ payload: { case: 'eof', value: true } });
}

/** Localhost over IPv4, then IPv6: what listens on one of them only is found. */
async function dial(port: number, signal: AbortSignal): Promise<Socket> {
  let cause: unknown;
  for (const host of ['127.0.0.1', '::1']) {
    const socket = connect({ host, port, allowHalfOpen: true, noDelay: true });
    // Stays for the socket's life: a reset that comes before somebody reads it must not end init.
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
  // Not a transient code: the connection to the sandbox stands, and a client that tries again finds the same.
  throw new DroverError('failed-precondition', `nothing listens on port ${port} in the sandbox`, {
    hint: 'start a program in the sandbox that listens on it',
    cause,
  });
}
