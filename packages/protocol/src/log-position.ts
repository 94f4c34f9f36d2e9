import { create } from '@bufbuild/protobuf';
import { timestampMs, type Timestamp } from '@bufbuild/protobuf/wkt';
import { LogChunkSchema, type LogChunk } from './generated/drover/api/v1/api_pb.ts';

/** Output of a main process, with the time at which init received it. */
export interface KeptOutput {
  readonly stderr: boolean;
  readonly data: Uint8Array;
  readonly time?: Timestamp | undefined;
  /** More than 0: this chunk represents that many bytes that are no longer retained. */
  readonly droppedBytes?: bigint;
}

/** The position of a reader in the retained log: the time of the last byte, and the number of bytes of that time that it has received. */
export class LogPosition {
  #time = Number.NEGATIVE_INFINITY;
  #bytes = 0;
  /** Bytes of `#time` that this reading has repeated. */
  #repeated = 0;

  get atStart(): boolean {
    return this.#time === Number.NEGATIVE_INFINITY;
  }

  /** Begins a new reading, which repeats the earlier output. */
  begin(): void {
    this.#repeated = 0;
  }

  /** The part of `chunks` that was not delivered before. */
  *fresh(chunks: Iterable<KeptOutput>): Generator<LogChunk> {
    for (const { stderr, data, time, droppedBytes = 0n } of chunks) {
      const at = time === undefined ? this.#time : timestampMs(time);
      if (at < this.#time) continue;
      if (droppedBytes > 0n) {
        // A gap at the time of the last byte was reported before.
        if (at > this.#time) yield create(LogChunkSchema, { stderr, droppedBytes, ...(time === undefined ? {} : { time }) });
        continue;
      }
      if (at > this.#time) {
        this.#time = at;
        this.#bytes = 0;
        this.#repeated = 0;
      }
      const known = Math.min(Math.max(0, this.#bytes - this.#repeated), data.byteLength);
      this.#repeated += data.byteLength;
      this.#bytes = Math.max(this.#bytes, this.#repeated);
      const rest = data.subarray(known);
      if (rest.byteLength > 0) yield create(LogChunkSchema, { stderr, data: rest, ...(time === undefined ? {} : { time }) });
    }
  }
}
