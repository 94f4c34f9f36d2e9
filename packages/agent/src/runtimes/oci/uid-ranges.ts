import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { DroverError } from '@drover/foundation';
import { launch } from '@drover/linux';
import { uidRangeBase, uidRangeCount, uidRangeSize, warmUserNamespaces } from '../../limits.ts';

/** The first uid (and gid) on the host of a slot's range; 0 inside. */
export const rangeStart = (slot: number): number => uidRangeBase + slot * uidRangeSize;

/**
 * Which range of uids each sandbox has: two sandboxes share none, so that neither could touch the other's files or processes
 * even outside of its namespaces. The slot is kept in the sandbox's record.
 *
 * For owners of image layers to be mapped, the kernel wants a user namespace that carries the mapping. One is made per slot by a
 * short-lived process, held by a descriptor, and made ahead, since it takes longer than the rest of a create's preparations.
 */
export class UidRanges {
  readonly #used: Set<number>;
  readonly #namespaces = new Map<number, Promise<number>>();
  #closed = false;

  constructor(used: Iterable<number>) {
    this.#used = new Set(used);
  }

  /** A free slot, now taken. @throws {DroverError} no-room */
  take(): number {
    for (let slot = 0; slot < uidRangeCount; slot++) {
      if (this.#used.has(slot)) continue;
      this.#used.add(slot);
      return slot;
    }
    throw new DroverError('no-room', `all ${uidRangeCount} uid ranges of this host are taken`, {
      hint: 'remove sandboxes that are not needed',
    });
  }

  give(slot: number): void {
    this.#used.delete(slot);
  }

  /** A descriptor of a user namespace with the slot's mapping; it stays this object's. */
  namespace(slot: number): Promise<number> {
    let made = this.#namespaces.get(slot);
    if (made === undefined) {
      made = makeUserNamespace(rangeStart(slot));
      this.#namespaces.set(slot, made);
      made.catch(() => this.#namespaces.delete(slot));
    }
    return made;
  }

  /** Makes namespaces for the slots that are next, in the background. */
  warm(): void {
    if (this.#closed) return;
    let ahead = 0;
    for (let slot = 0; slot < uidRangeCount && ahead < warmUserNamespaces; slot++) {
      if (this.#used.has(slot)) continue;
      ahead++;
      // The create that needs it gets the error.
      this.namespace(slot).catch(() => undefined);
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const made of this.#namespaces.values()) {
      const fd = await made.catch(() => undefined);
      if (fd !== undefined) closeSync(fd);
    }
    this.#namespaces.clear();
  }
}

/** unshare(1) makes it, this process (which has the privilege) writes the mapping and keeps a descriptor, and the helper ends. */
async function makeUserNamespace(start: number): Promise<number> {
  // The shell says when unshare(2) is done; it ends with its stdin, so with this process at the latest.
  const helper = await launch('unshare', ['--user', 'sh', '-c', 'echo; read -r _'], { streams: ['stdin', 'stdout'] });
  const { stdin, stdout } = helper;
  try {
    if (stdin === undefined || stdout === undefined) throw new DroverError('internal', 'the helper has no streams');
    const ready = await Promise.race([once(stdout, 'data').then(() => true), helper.ended.then(() => false)]);
    if (!ready) throw new DroverError('runtime-failed', 'this host makes no user namespaces');
    const mapping = `0 ${start} ${uidRangeSize}\n`;
    await writeFile(`/proc/${helper.pid}/uid_map`, mapping);
    await writeFile(`/proc/${helper.pid}/gid_map`, mapping);
    return openSync(`/proc/${helper.pid}/ns/user`, 'r');
  } finally {
    stdin?.destroy();
    await helper.ended;
    stdout?.destroy();
  }
}
