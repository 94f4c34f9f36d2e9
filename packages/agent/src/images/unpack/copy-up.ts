import { fsPath } from '@drover/archive';
import { attributesOf, makeNode, setAttribute } from '@drover/linux';
import { chmodSync, constants, copyFileSync, lchownSync, lutimesSync, readlinkSync, symlinkSync } from 'node:fs';
import { opaqueAttribute, type LowerEntry } from './lower-layers.ts';

/** Copies a file, link, device or fifo of a lower layer to `target`, which must not exist. Paths in latin1 (see tar.ts). */
export function copyUp({ path, status }: LowerEntry, target: string): void {
  if (status.isFile()) copyFileSync(fsPath(path), fsPath(target), constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE);
  else if (status.isSymbolicLink()) symlinkSync(readlinkSync(fsPath(path), 'buffer'), fsPath(target));
  else {
    const type = status.isFIFO() ? 'fifo' : status.isCharacterDevice() ? 'character' : 'block';
    const { major, minor } = deviceParts(status.rdev);
    makeNode(target, type, major, minor);
  }
  copyMetadata({ path, status }, target);
  lutimesSync(fsPath(target), status.mtimeMs / 1000, status.mtimeMs / 1000);
}

/** Copies owner, mode and attributes; not the time, which later changes of a directory's content would change. */
export function copyMetadata({ path, status }: LowerEntry, target: string): void {
  // chown clears setuid bits and capabilities, so it comes first.
  lchownSync(fsPath(target), status.uid, status.gid);
  if (!status.isSymbolicLink()) chmodSync(fsPath(target), status.mode & 0o7777);
  for (const [name, value] of attributesOf(path)) {
    if (name !== opaqueAttribute) setAttribute(target, name, value);
  }
}

/** gnu_dev_major and gnu_dev_minor of the C library. */
function deviceParts(device: number): { readonly major: number; readonly minor: number } {
  const bits = BigInt(device);
  return {
    major: Number(((bits >> 32n) & 0xfffff000n) | ((bits >> 8n) & 0xfffn)),
    minor: Number(((bits >> 12n) & 0xffffff00n) | (bits & 0xffn)),
  };
}
