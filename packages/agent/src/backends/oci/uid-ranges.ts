import { closeSync } from 'node:fs';
import { DroverError } from '@drover/foundation';
import { makeUserNamespace } from '@drover/linux';
import { uidRangeBase, uidRangeCount, uidRangeSize, warmUserNamespaces } from '../../limits.ts';

/** The host's id that is 0 in a sandbox with this slot. */
export const rangeStart = (slot: number): number => uidRangeBase + slot * uidRangeSize;

/**
 * The range of uids of each sandbox. No two sandboxes share an id, so that neither could touch the other's files or processes even outside of
 * its namespaces. The sandbox's record has its slot.
 *
 * The kernel maps the owners of image layers by a user namespace. Each slot has one, held by a descriptor and made in advance, since making it
 * takes longer than the rest of a create's preparations.
 */
export class UidRanges {
  readonly #used: Set<number>;
  readonly #namespaces = new Map<number, Promise<number>>();
  #closed = false;

  /** @param used the slots of the sandboxes on record */
  constructor(used: Iterable<number>) {
    this.#used = new Set(used);
  }

  /** Acquires a free slot. @throws {DroverError} no-room */
  acquire(): number {
    const slot = this.#free(1)[0];
    if (slot === undefined) {
      throw new DroverError('no-room', `all ${uidRangeCount} uid ranges of this host are in use`, {
        hint: 'remove sandboxes that are not needed',
      });
    }
    this.#used.add(slot);
    return slot;
  }

  release(slot: number): void {
    this.#used.delete(slot);
  }

  /** A descriptor of the slot's user namespace. This object closes it. */
  namespace(slot: number): Promise<number> {
    let made = this.#namespaces.get(slot);
    if (made === undefined) {
      made = makeUserNamespace(rangeStart(slot), uidRangeSize);
      this.#namespaces.set(slot, made);
      made.catch(() => this.#namespaces.delete(slot));
    }
    return made;
  }

  /** Makes namespaces for the next slots, in the background. */
  warm(): void {
    // A create that needs the namespace gets the error.
    if (!this.#closed) for (const slot of this.#free(warmUserNamespaces)) this.namespace(slot).catch(() => undefined);
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const made of this.#namespaces.values()) {
      const fd = await made.catch(() => undefined);
      if (fd !== undefined) closeSync(fd);
    }
    this.#namespaces.clear();
  }

  /** The first free slots, at most `count`. */
  #free(count: number): readonly number[] {
    const slots: number[] = [];
    for (let slot = 0; slot < uidRangeCount && slots.length < count; slot++) if (!this.#used.has(slot)) slots.push(slot);
    return slots;
  }
}
