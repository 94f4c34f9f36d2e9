import { isUtf8 } from 'node:buffer';

/** Output as JSON carries it. */
export interface TextOrBytes {
  /** With U+FFFD in place of what is not UTF-8. */
  readonly data: string;
  /** The exact bytes, where `data` is not. */
  readonly dataBase64?: string;
}

/** Cuts a stream of bytes into text where it can be cut: a character whose bytes come in two pieces is in the second. */
export class OutputText {
  #held: Buffer = Buffer.alloc(0);

  /** Undefined while only a part of a character is there. */
  take(bytes: Uint8Array): TextOrBytes | undefined {
    const all = Buffer.concat([this.#held, bytes]);
    const end = all.length - unfinished(all);
    this.#held = all.subarray(end);
    return end === 0 ? undefined : textOrBytes(all.subarray(0, end));
  }

  /** What is held when no more comes. */
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

/** Bytes at the end that begin a character and do not finish it (RFC 3629, section 3). */
function unfinished(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] ?? 0;
    if ((byte & 0xc0) === 0x80) continue;
    const wanted = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return wanted > back ? back : 0;
  }
  return 0;
}
