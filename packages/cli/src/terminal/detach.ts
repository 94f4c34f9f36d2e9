/** Ctrl-P Ctrl-Q, as in docker. */
const first = 0x10;
const second = 0x11;

/** Finds the detach keys in the input, also across two reads. Ctrl-P followed by another key is passed on. */
export class DetachKeys {
  #armed = false;

  /** @returns the data to pass on, and whether the detach keys were typed */
  feed(chunk: Uint8Array): { readonly data: Uint8Array; readonly detached: boolean } {
    const data: number[] = [];
    for (const byte of chunk) {
      if (this.#armed) {
        this.#armed = false;
        if (byte === second) return { data: Uint8Array.from(data), detached: true };
        data.push(first);
      }
      if (byte === first) this.#armed = true;
      else data.push(byte);
    }
    return { data: Uint8Array.from(data), detached: false };
  }
}
