import { create } from '@bufbuild/protobuf';
import { timestampMs, type Timestamp } from '@bufbuild/protobuf/wkt';
import { LogChunkSchema, type LogChunk } from './generated/drover/api/v1/api_pb.ts';

/** Output of a main process, with the time at which init took it. */
export interface KeptOutput {
  readonly stderr: boolean;
  readonly data: Uint8Array;
  readonly time?: Timestamp | undefined;
  /** More than 0: no data, but so many bytes that are no longer kept before what follows. */
  readonly droppedBytes?: bigint;
}

/** Where a reader of the kept log is: the time of the last byte, and how many bytes of that very time it has. */
export class LogPosition {
  #time = Number.NEGATIVE_INFINITY;
  #bytes = 0;
  /** Bytes at `#time` met again in this round. */
  #met = 0;

  get atStart(): boolean {
    return this.#time === Number.NEGATIVE_INFINITY;
  }

  /** A reader begins anew: what it had is going to come again. */
  begin(): void {
    this.#met = 0;
  }

  /** What of `chunks` was not handed out before. */
  *fresh(chunks: Iterable<KeptOutput>): Generator<LogChunk> {
    for (const { stderr, data, time, droppedBytes = 0n } of chunks) {
      const at = time === undefined ? this.#time : timestampMs(time);
      if (at < this.#time) continue;
      if (droppedBytes > 0n) {
        // At the very time of the last byte nothing is missing that the reader has not been told of.
        if (at > this.#time) yield create(LogChunkSchema, { stderr, droppedBytes, ...(time === undefined ? {} : { time }) });
        continue;
      }
      if (at > this.#time) {
        this.#time = at;
        this.#bytes = 0;
        this.#met = 0;
      }
      const known = Math.min(Math.max(0, this.#bytes - this.#met), data.byteLength);
      this.#met += data.byteLength;
      this.#bytes = Math.max(this.#bytes, this.#met);
      const rest = data.subarray(known);
      if (rest.byteLength > 0) yield create(LogChunkSchema, { stderr, data: rest, ...(time === undefined ? {} : { time }) });
    }
  }
}
