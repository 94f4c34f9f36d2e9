import { fsPath } from '@drover/archive';
import { attributesOf } from '@drover/linux';
import { lstatSync, type Stats } from 'node:fs';
import { DroverError } from '@drover/foundation';

/** The layer depends on the layers below it: it links to a file of theirs, or has no entry for a directory that may be theirs. */
export class NeedsLowerLayers extends DroverError {
  constructor() {
    super('internal', 'the layer depends on the layers below it');
  }
}

export interface LowerEntry {
  /** On this machine, in latin1 (see tar.ts). */
  readonly path: string;
  readonly status: Stats;
}

/**
 * The tree of the layers below, merged as by overlayfs: a whiteout (a character device 0/0) and an opaque directory hide the layers further down
 * (kernel Documentation/filesystems/overlayfs.rst). Links are not followed.
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

/** `hidden`: this layer hides the path in the layers below it. Undefined: this layer does not concern the path. */
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
