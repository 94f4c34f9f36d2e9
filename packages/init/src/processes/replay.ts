import { maxReplayBytes, maxReplayBytesTotal, minReplayBytes } from '../limits.ts';

export interface OutputChunk {
  readonly stderr: boolean;
  readonly data: Buffer;
  /** Output bytes over both streams before this chunk. */
  readonly offset: number;
}

/** Shares a number of bytes evenly between buffers. */
export class ReplayBudget {
  readonly #buffers = new Set<ReplayBuffer>();

  add(buffer: ReplayBuffer): void {
    this.#buffers.add(buffer);
    for (const other of this.#buffers) other.trim(this.share);
  }

  remove(buffer: ReplayBuffer): void {
    this.#buffers.delete(buffer);
  }

  get share(): number {
    return Math.max(minReplayBytes, Math.min(maxReplayBytes, Math.floor(maxReplayBytesTotal / Math.max(1, this.#buffers.size))));
  }
}

/** Small chunks are joined up to this size, so that a million lines do not become a million objects. */
const joinBytes = 4096;

/** The last bytes of a process's output, both streams in order, addressed by offset (I-40). */
export class ReplayBuffer {
  #chunks: OutputChunk[] = [];
  #start = 0;
  #end = 0;
  readonly #budget: ReplayBudget;

  constructor(budget: ReplayBudget) {
    this.#budget = budget;
    budget.add(this);
  }

  /** The offset of the first byte that is kept. */
  get start(): number {
    return this.#start;
  }

  /** All output bytes so far. */
  get end(): number {
    return this.#end;
  }

  push(stderr: boolean, data: Buffer): void {
    const last = this.#chunks.at(-1);
    if (last !== undefined && last.stderr === stderr && last.data.length + data.length <= joinBytes) {
      this.#chunks[this.#chunks.length - 1] = { stderr, data: Buffer.concat([last.data, data]), offset: last.offset };
    } else {
      this.#chunks.push({ stderr, data, offset: this.#end });
    }
    this.#end += data.length;
    this.trim(this.#budget.share);
  }

  /** The chunk at `offset`, or at the first byte that is kept after it. Undefined: no output follows yet. */
  read(offset: number): OutputChunk | undefined {
    const from = Math.max(offset, this.#start);
    if (from >= this.#end) return undefined;
    let low = 0;
    let high = this.#chunks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#chunks[middle]?.offset ?? 0) <= from) low = middle;
      else high = middle - 1;
    }
    const chunk = this.#chunks[low];
    if (chunk === undefined) return undefined;
    return { stderr: chunk.stderr, data: chunk.data.subarray(from - chunk.offset), offset: from };
  }

  trim(capacity: number): void {
    let drop = 0;
    while (this.#end - this.#start > capacity) {
      const first = this.#chunks[drop];
      if (first === undefined) break;
      const over = this.#end - this.#start - capacity;
      const length = first.offset + first.data.length - this.#start;
      if (length <= over) {
        this.#start += length;
        drop++;
      } else {
        this.#start += over;
      }
    }
    if (drop > 0) this.#chunks.splice(0, drop);
  }

  dispose(): void {
    this.#budget.remove(this);
    this.#chunks = [];
    this.#start = this.#end;
  }
}
