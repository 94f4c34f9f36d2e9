/** Ctrl-P Ctrl-Q, as docker has it. */
const first = 0x10;
const second = 0x11;

/** Looks for the detach keys in what is typed; they may come in two reads. Another key after Ctrl-P goes on with it. */
export class DetachKeys {
  #armed = false;

  /** What to send on, and whether the keys were typed. */
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
