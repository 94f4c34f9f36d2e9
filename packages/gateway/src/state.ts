import { createHash } from 'node:crypto';
import { fstatSync, ftruncateSync, readSync, writeSync } from 'node:fs';

const digestBytes = 32;

/** A value that outlives the process that wrote it: the supervisor keeps the descriptor open for the replacement. */
export class SurvivingState {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** What was written last; undefined when nothing was, or when the writer died in between. */
  read(): Buffer | undefined {
    const bytes = Buffer.alloc(fstatSync(this.#fd).size);
    readSync(this.#fd, bytes, 0, bytes.length, 0);
    const content = bytes.subarray(digestBytes);
    return bytes.length >= digestBytes && digest(content).equals(bytes.subarray(0, digestBytes)) ? content : undefined;
  }

  write(content: Uint8Array): void {
    const bytes = Buffer.concat([digest(content), content]);
    writeSync(this.#fd, bytes, 0, bytes.length, 0);
    ftruncateSync(this.#fd, bytes.length);
  }
}

function digest(content: Uint8Array): Buffer {
  return createHash('sha256').update(content).digest();
}
