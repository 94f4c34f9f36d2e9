import { DroverError } from '@drover/foundation';
import { maxMessageBytes } from '../limits.ts';

/** Puts gRPC's length prefix before a message (gRPC over HTTP/2: one byte of flags, four of length, big-endian). */
export function frame(message: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(5 + message.length);
  out[0] = 0;
  out.writeUInt32BE(message.length, 1);
  out.set(message, 5);
  return out;
}

/** Cuts a byte stream into gRPC messages; holds at most one incomplete message. */
export class Deframer {
  #pending: Buffer = Buffer.alloc(0);

  /** The messages completed by `chunk`. @throws {DroverError} too-large, protocol-violation */
  push(chunk: Buffer): Buffer[] {
    let rest = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    const messages: Buffer[] = [];
    while (rest.length >= 5) {
      if (rest[0] !== 0) throw new DroverError('protocol-violation', 'compressed messages are not supported');
      const length = rest.readUInt32BE(1);
      if (length > maxMessageBytes)
        throw new DroverError('too-large', `a message of ${length} bytes; at most ${maxMessageBytes} are taken`);
      if (rest.length < 5 + length) break;
      messages.push(rest.subarray(5, 5 + length));
      rest = rest.subarray(5 + length);
    }
    this.#pending = rest;
    return messages;
  }

  /** Says whether the stream ended between messages. */
  get complete(): boolean {
    return this.#pending.length === 0;
  }
}
