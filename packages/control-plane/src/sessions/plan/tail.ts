/** Retains the last bytes of a stream (I-30). */
export class Tail {
  readonly #limit: number;
  #chunks: Buffer[] = [];
  #size = 0;
  #total = 0;

  /** @param limit bytes */
  constructor(limit: number) {
    this.#limit = limit;
  }

  push(chunk: Uint8Array): void {
    this.#total += chunk.byteLength;
    const last = Buffer.from(chunk.subarray(Math.max(0, chunk.byteLength - this.#limit)));
    if (last.byteLength === 0) return;
    this.#chunks.push(last);
    this.#size += last.byteLength;
    for (let first = this.#chunks[0]; first !== undefined && this.#size - first.byteLength >= this.#limit; first = this.#chunks[0]) {
      this.#chunks.shift();
      this.#size -= first.byteLength;
    }
    // Merge many small chunks: their overhead would exceed their bytes.
    if (this.#chunks.length > 64) this.#chunks = [Buffer.concat(this.#chunks)];
  }

  /** The last bytes, at most `limit`. If there were more, a line `[N bytes truncated]` precedes them. */
  toString(): string {
    const all = Buffer.concat(this.#chunks);
    let start = Math.max(0, all.byteLength - this.#limit);
    // Do not start within a character: UTF-8 has at most three continuation bytes, 10xxxxxx.
    if (this.#total > this.#limit) {
      for (let i = 0; i < 3 && ((all[start] ?? 0) & 0xc0) === 0x80; i++) start++;
    }
    const text = all.subarray(start).toString('utf8');
    const truncated = this.#total - (all.byteLength - start);
    return truncated === 0 ? text : `[${truncated} bytes truncated]\n${text}`;
  }
}
