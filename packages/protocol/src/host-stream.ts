import { once } from 'node:events';
import { Duplex, type Readable, type Writable } from 'node:stream';
import { create, fromBinary, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { errorFromWire } from './errors.ts';
import { maxHostStreamMessageBytes } from './limits.ts';
import type { Error as WireError } from './generated/drover/link/v1/error_pb.ts';
import { HostStreamMessageSchema, type HostStreamMessage } from './generated/drover/link/v1/link_pb.ts';

/** Writes messages to a tunnel or a pipe with backpressure, and ends it. Sends a failure as the last message. Never rejects. */
export async function writeHostStream(
  messages: AsyncIterable<MessageInitShape<typeof HostStreamMessageSchema>>,
  tunnel: Writable,
  encodeError: (thrown: unknown) => WireError,
): Promise<void> {
  const closed = new AbortController();
  tunnel.once('close', () => closed.abort());
  const write = async (message: MessageInitShape<typeof HostStreamMessageSchema>): Promise<void> => {
    const bytes = toBinary(HostStreamMessageSchema, create(HostStreamMessageSchema, message));
    const frame = Buffer.allocUnsafe(4 + bytes.length);
    frame.writeUInt32BE(bytes.length);
    frame.set(bytes, 4);
    if (!tunnel.write(frame)) await once(tunnel, 'drain', { signal: closed.signal });
  };
  // The reader sends no data: resume to receive its end.
  if (tunnel instanceof Duplex) tunnel.resume();
  try {
    for await (const message of messages) {
      await write(message);
      if (closed.signal.aborted) return;
    }
  } catch (error) {
    if (closed.signal.aborted) return;
    await write({ message: { case: 'error', value: encodeError(error) } }).catch(() => undefined);
  }
  tunnel.end();
}

/** The messages of the peer. @throws {DroverError} the error of the peer; unavailable when the tunnel breaks; protocol-violation */
export async function* readHostStream(
  tunnel: Readable,
  signal: AbortSignal,
): AsyncGenerator<HostStreamMessage['message'], void, undefined> {
  const abort = (): void => void tunnel.destroy();
  signal.addEventListener('abort', abort, { once: true });
  // A tunnel closes when both sides have sent their end.
  if (tunnel instanceof Duplex) tunnel.end();
  let held: Buffer = Buffer.alloc(0);
  try {
    for await (const chunk of tunnel as AsyncIterable<Buffer>) {
      held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      while (held.length >= 4) {
        const length = held.readUInt32BE(0);
        if (length > maxHostStreamMessageBytes) throw new DroverError('protocol-violation', 'the host sent a message that is too long');
        if (held.length < 4 + length) break;
        const { message } = fromBinary(HostStreamMessageSchema, held.subarray(4, 4 + length));
        held = held.subarray(4 + length);
        if (message.case === 'error') throw errorFromWire(message.value);
        yield message;
      }
    }
  } catch (error) {
    signal.throwIfAborted();
    throw DroverError.from(error, 'unavailable');
  } finally {
    signal.removeEventListener('abort', abort);
    tunnel.destroy();
  }
  if (held.length > 0) throw new DroverError('unavailable', 'the stream of the host broke off');
}
