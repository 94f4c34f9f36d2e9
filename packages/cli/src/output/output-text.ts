import { isUtf8 } from 'node:buffer';

/** A piece of output in JSON. */
export interface TextOrBytes {
  /** With U+FFFD in place of invalid UTF-8. */
  readonly data: string;
  /** The exact bytes, if `data` is not. */
  readonly dataBase64?: string;
}

/** Decodes a stream of bytes without splitting a character: its first bytes wait for the rest. */
export class OutputText {
  #held: Buffer = Buffer.alloc(0);

  /** @returns undefined if only part of a character has arrived */
  take(bytes: Uint8Array): TextOrBytes | undefined {
    const all = Buffer.concat([this.#held, bytes]);
    const end = all.length - unfinished(all);
    this.#held = all.subarray(end);
    return end === 0 ? undefined : textOrBytes(all.subarray(0, end));
  }

  /** @returns the bytes of an unfinished character at the end of the stream */
  end(): TextOrBytes | undefined {
    const rest = this.#held;
    this.#held = Buffer.alloc(0);
    return rest.length === 0 ? undefined : textOrBytes(rest);
  }
}

function textOrBytes(bytes: Buffer): TextOrBytes {
  const data = bytes.toString('utf8');
  return isUtf8(bytes) ? { data } : { data, dataBase64: bytes.toString('base64') };
}

/** How many bytes at the end start a character without finishing it (RFC 3629, section 3). */
function unfinished(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] ?? 0;
    if ((byte & 0xc0) === 0x80) continue;
    const wanted = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return wanted > back ? back : 0;
  }
  return 0;
}
