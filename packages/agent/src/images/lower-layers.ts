import { fsPath } from '@drover/archive';
import { attributesOf } from '@drover/linux';
import { lstatSync, type Stats } from 'node:fs';

/** A layer cannot be unpacked without the layers below it: it links to a file of theirs, or leaves out a directory that may be theirs. */
export class NeedsLowerLayers extends Error {}

export interface LowerEntry {
  /** Where it is on this machine, in latin1 (see tar.ts). */
  readonly path: string;
  readonly status: Stats;
}

/**
 * The tree that the layers below show, as overlayfs merges them: a whiteout (a character device 0/0) and an opaque directory hide what lies
 * further down (kernel Documentation/filesystems/overlayfs.rst). Links are not followed: only a directory has something below it.
 */
export class LowerLayers {
  readonly #roots: readonly string[];

  /** @param roots directories of unpacked layers, lowest first */
  constructor(roots: readonly string[]) {
    this.#roots = roots.map((root) => Buffer.from(root, 'utf8').toString('latin1')).toReversed();
  }

  find(components: readonly string[]): LowerEntry | undefined {
    for (const root of this.#roots) {
      const found = findIn(root, components);
      if (found === 'hidden') return undefined;
      if (found !== undefined) return found;
    }
    return undefined;
  }
}

/** `hidden`: this layer hides the path in the layers below it; undefined: it says nothing of the path. */
function findIn(root: string, components: readonly string[]): LowerEntry | 'hidden' | undefined {
  let path = root;
  let opaque = false;
  for (const [index, component] of components.entries()) {
    path = `${path}/${component}`;
    const status = lstatSync(fsPath(path), { throwIfNoEntry: false });
    if (status === undefined) return opaque ? 'hidden' : undefined;
    if (isWhiteout(status)) return 'hidden';
    if (index === components.length - 1) return { path, status };
    if (!status.isDirectory()) return 'hidden';
    opaque ||= attributesOf(path).has(opaqueAttribute);
  }
  return undefined;
}

export const opaqueAttribute = 'trusted.overlay.opaque';

export function isWhiteout(status: Stats): boolean {
  return status.isCharacterDevice() && status.rdev === 0;
}
