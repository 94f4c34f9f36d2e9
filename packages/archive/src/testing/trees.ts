import { chmodSync, closeSync, ftruncateSync, lchownSync, linkSync, mkdirSync, openSync, symlinkSync, writeSync } from 'node:fs';
import { setAttribute, setTime } from '@drover/linux';
import fc from 'fast-check';
import { byteString, fsPath } from '../names.ts';

/** For tests: trees of files, and directories made of them. */

export interface TreeNode {
  readonly name: string;
  readonly kind: 'file' | 'sparse' | 'directory' | 'symlink' | 'hardlink';
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  readonly size: number;
  readonly target: string;
  readonly attributes: readonly (readonly [string, string])[];
  readonly children: readonly TreeNode[];
}

/** A file name: any bytes but zero and the slash. */
const fileName = fc.oneof(
  { weight: 4, arbitrary: fc.stringMatching(/^[a-z]{1,8}$/) },
  fc
    .uint8Array({ minLength: 1, maxLength: 12 })
    .map((bytes) => Buffer.from(bytes.map((byte) => (byte === 0 || byte === 47 ? 255 : byte))).toString('latin1')),
  fc.string({ unit: 'grapheme', minLength: 1, maxLength: 8 }).map((text) => byteString(text.replaceAll(/[/\0]/g, '_'))),
  fc.integer({ min: 90, max: 255 }).map((length) => 'long'.repeat(64).slice(0, length)),
);

function node(depth: number): fc.Arbitrary<TreeNode> {
  const kinds = ['file', 'file', 'sparse', 'symlink', 'hardlink', ...(depth > 0 ? (['directory', 'directory'] as const) : [])] as const;
  return fc.record({
    name: fileName.map((name) => (name === '.' || name === '..' ? '...' : name)),
    kind: fc.constantFrom(...kinds),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 65_535 }), fc.constant(3_000_000)),
    gid: fc.integer({ min: 0, max: 65_535 }),
    mtimeNs: fc.oneof(fc.bigInt({ min: 0n, max: 4_000_000_000_000_000_000n }), fc.bigInt({ min: -1_000_000_000_000_000_000n, max: 0n })),
    size: fc.oneof({ weight: 5, arbitrary: fc.integer({ min: 0, max: 3_000 }) }, fc.integer({ min: 0, max: 1_500_000 })),
    target: fc.uint8Array({ minLength: 1, maxLength: 150 }).map((bytes) => Buffer.from(bytes.map((byte) => byte || 1)).toString('latin1')),
    attributes: fc.array(
      fc.tuple(
        fc.stringMatching(/^user\.[a-z.]{1,10}$/),
        fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes).toString('latin1')),
      ),
      { maxLength: 2 },
    ),
    children: depth > 0 ? fc.array(node(depth - 1), { maxLength: 4 }) : fc.constant([]),
  });
}

export const arbitraryTree: fc.Arbitrary<readonly TreeNode[]> = fc.array(node(2), { minLength: 1, maxLength: 6 });

/**
 * Makes the tree below a directory that does not exist yet. A node whose name is taken is left out.
 * @param lastId the largest user id that the tree may have
 */
export function makeTree(path: string, tree: readonly TreeNode[], lastId = Number.POSITIVE_INFINITY): void {
  mkdirSync(fsPath(path), { mode: 0o755 });
  fill(path, tree, [], lastId);
}

function fill(path: string, tree: readonly TreeNode[], files: string[], lastId: number): void {
  const taken = new Set<string>();
  for (const node of tree) {
    if (taken.has(node.name)) continue;
    taken.add(node.name);
    const at = `${path}/${node.name}`;
    const first = files[0];
    if (node.kind === 'hardlink' && first !== undefined) {
      linkSync(fsPath(first), fsPath(at));
      continue;
    }
    if (node.kind === 'symlink') symlinkSync(fsPath(node.target), fsPath(at));
    else if (node.kind === 'directory') {
      mkdirSync(fsPath(at));
      fill(at, node.children, files, lastId);
    } else {
      write(at, node);
      files.push(at);
    }
    dress(at, { ...node, uid: Math.min(node.uid, lastId) });
  }
}

function write(at: string, { kind, size }: TreeNode): void {
  const fd = openSync(fsPath(at), 'wx');
  if (kind === 'sparse') {
    writeSync(fd, 'begin', 0);
    writeSync(fd, 'middle', 300_000 + size);
    ftruncateSync(fd, 900_000 + size);
  } else writeSync(fd, Buffer.alloc(size, 'content of a file\n'));
  closeSync(fd);
}

function dress(at: string, { kind, uid, gid, mode, mtimeNs, attributes }: TreeNode): void {
  lchownSync(fsPath(at), uid, gid);
  if (kind !== 'symlink') {
    chmodSync(fsPath(at), mode);
    for (const [name, value] of attributes) setAttribute(at, name, Buffer.from(value, 'latin1'));
  }
  setTime(at, mtimeNs);
}
