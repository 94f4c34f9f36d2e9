import { realpath } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import { DroverError, clip, errnoOf } from '@drover/foundation';

/**
 * Where an archive's entry goes below `root`, which is a real path: no `..`, and no link on the way that leads out.
 * The workload may have made links there before; init writes as root, and must not be led.
 * @throws {DroverError} unsafe-archive
 */
export async function placeBelow(root: string, name: string): Promise<string> {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..') || name.includes('\0')) throw unsafe(name, 'leaves the directory');
  const path = join(root, ...parts);
  if (parts.length === 0) return path;
  const parent = await realParent(dirname(path));
  if (!isBelow(root, parent)) throw unsafe(name, 'leads through a link out of the directory');
  return join(parent, basename(path));
}

/** The real path of `path`, or of what of it exists, with the rest joined. */
async function realParent(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT' || dirname(path) === path) throw error;
    return join(await realParent(dirname(path)), basename(path));
  }
}

export function isBelow(root: string, path: string): boolean {
  return root === sep || path === root || path.startsWith(root + sep);
}

export function unsafe(name: string, why: string): DroverError {
  return new DroverError('unsafe-archive', `the archive's entry ${JSON.stringify(clip(name))} ${why}`, {
    hint: 'nothing after it was unpacked',
  });
}
