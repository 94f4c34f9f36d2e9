import { bytesOf, placeOf, resolveGiven, stringOf, writeTree, type WriteTreeOptions } from '@drover/archive';
import { DroverError } from '@drover/foundation';
import type { Cli } from '../cli.ts';
import type { CopyFlags } from './flags.ts';
import type { CopyReport } from './report.ts';

/**
 * Copies as cp -R does. If the target is a directory, the copy is placed in it under its own name; otherwise it becomes the target. Of
 * `DIR/.` the contents are copied. `-` writes the tar stream to stdout. Paths are byte strings.
 *
 * The sandbox is untrusted: no entry leaves the target, no link of the copy is followed, nothing is written through an existing link, no
 * device is created, and without --archive no owner and no set-user-ID bit is kept.
 */
export async function copyOut(
  cli: Cli,
  report: CopyReport,
  reference: string,
  source: string,
  target: string,
  flags: CopyFlags,
): Promise<void> {
  const owner = ownerOf(flags);
  const contents = resolveGiven(source, '/').name === '.';
  const place = target === '-' ? undefined : await placeOf(resolveGiven(target, process.cwd()), { contents, parents: 'must-exist' });
  const client = await cli.connect();
  const tar: AsyncIterable<Uint8Array> = client.sandboxes.copyOut(reference, bytesOf(source), {
    followLinks: flags.followLink === true,
    onLeftOut: ({ path, reason }) => report.leftOut({ path: stringOf(path), reason }),
    signal: cli.signal,
  });
  if (place === undefined) {
    for await (const chunk of tar) {
      await cli.out.bytes(chunk);
      report.moved(chunk.length);
    }
    return;
  }
  const written = await writeTree(tar, {
    ...place,
    links: 'none',
    owner,
    leftOut: (item) => report.leftOut(item),
    onBytes: (bytes) => report.moved(bytes),
    signal: cli.signal,
  });
  report.entries = written.entries;
  report.bytes = written.bytes;
}

/** @throws {DroverError} invalid-argument */
function ownerOf({ archive, chown }: CopyFlags): WriteTreeOptions['owner'] {
  if (archive === true) return 'keep';
  if (chown === undefined) return undefined;
  const match = /^(\d{1,10})(?::(\d{1,10}))?$/.exec(chown);
  if (match === null) {
    throw new DroverError('invalid-argument', `--chown ${JSON.stringify(chown)} is not UID[:GID]`, {
      hint: 'use numbers for a copy out of a sandbox; names belong to the sandbox, for a copy in',
    });
  }
  return { uid: Number(match[1]), gid: match[2] === undefined ? (process.getgid?.() ?? 0) : Number(match[2]) };
}
