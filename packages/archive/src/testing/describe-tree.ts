import { createHash } from 'node:crypto';
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { attributesOf } from '@drover/linux';
import { fsPath } from '../names.ts';

/** For tests: all that must be the same of two trees. */
export interface NodeDescription {
  readonly path: string;
  readonly type: string;
  readonly mode: string;
  readonly owner: string;
  /** Nanoseconds. */
  readonly mtime: bigint;
  readonly content: string;
  /** Blocks on the disk are much fewer than the size. */
  readonly isSparse: boolean;
  /** The path of its other name that comes first. */
  readonly firstName: string;
  readonly attributes: readonly string[];
}

/** Its own directory is left out: where it was copied to may have existed. */
export function describeTree(root: string): readonly NodeDescription[] {
  const first = new Map<bigint, string>();
  const found: NodeDescription[] = [];
  const walk = (path: string): void => {
    for (const name of readdirSync(fsPath(root + path), 'latin1').sort()) {
      const child = `${path}/${name}`;
      const at = root + child;
      const stats = lstatSync(fsPath(at), { bigint: true });
      if (!first.has(stats.ino)) first.set(stats.ino, child);
      const content = stats.isFile()
        ? createHash('sha256')
            .update(readFileSync(fsPath(at)))
            .digest('hex')
        : stats.isSymbolicLink()
          ? readlinkSync(fsPath(at), 'latin1')
          : '';
      found.push({
        path: child,
        type: stats.isFile() ? 'file' : stats.isDirectory() ? 'directory' : stats.isSymbolicLink() ? 'symlink' : 'other',
        mode: (stats.mode & 0o7777n).toString(8),
        owner: `${stats.uid}:${stats.gid}`,
        mtime: stats.mtimeNs,
        content,
        isSparse: stats.isFile() && stats.size > 500_000n && stats.blocks * 512n < stats.size / 2n,
        firstName: first.get(stats.ino) ?? '',
        attributes: [...attributesOf(at)]
          .filter(([attribute]) => attribute.startsWith('user.'))
          .map(([attribute, value]) => `${attribute}=${value.toString('latin1')}`)
          .toSorted(),
      });
      if (stats.isDirectory()) walk(child);
    }
  };
  walk('');
  return found;
}
