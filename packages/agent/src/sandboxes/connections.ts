import type { Duplex } from 'node:stream';
import { lastBytesMs } from '../limits.ts';

/** Connections into a sandbox that have not been read to their end. */
export class OpenConnections {
  readonly #streams = new Set<Duplex>();

  add(stream: Duplex): Duplex {
    this.#streams.add(stream);
    for (const event of ['end', 'close']) stream.once(event, () => this.#streams.delete(stream));
    return stream;
  }

  /** Waits until all have been read to their end, at most `lastBytesMs`. */
  async readToEnd(): Promise<void> {
    if (this.#streams.size === 0) return;
    const read = [...this.#streams].map(
      async (stream) =>
        await new Promise<void>((resolve) => {
          for (const event of ['end', 'close']) stream.once(event, resolve);
        }),
    );
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, lastBytesMs)));
    await Promise.race([Promise.all(read), late]);
    clearTimeout(timer);
  }
}
