/** The last bytes of a stream that may be long (I-30). */
export class Tail {
  readonly #limit: number;
  #kept: Buffer[] = [];
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
    this.#kept.push(last);
    this.#size += last.byteLength;
    for (let first = this.#kept[0]; first !== undefined && this.#size - first.byteLength >= this.#limit; first = this.#kept[0]) {
      this.#kept.shift();
      this.#size -= first.byteLength;
    }
    // Many small chunks would cost more than their bytes.
    if (this.#kept.length > 64) this.#kept = [Buffer.concat(this.#kept)];
  }

  /** At most `limit` bytes, with `[N bytes truncated]` and a line end before them when there were more. */
  toString(): string {
    const all = Buffer.concat(this.#kept);
    let start = Math.max(0, all.byteLength - this.#limit);
    // Not from within a character: UTF-8 continues with at most three bytes of the form 10xxxxxx.
    if (this.#total > this.#limit) {
      for (let i = 0; i < 3 && ((all[start] ?? 0) & 0xc0) === 0x80; i++) start++;
    }
    const text = all.subarray(start).toString('utf8');
    const truncated = this.#total - (all.byteLength - start);
    return truncated === 0 ? text : `[${truncated} bytes truncated]\n${text}`;
  }
}
