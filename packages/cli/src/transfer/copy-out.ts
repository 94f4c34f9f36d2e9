import { bytesOf, placeOf, resolveGiven, stringOf, writeTree, type WriteTreeOptions } from '@drover/archive';
import { DroverError } from '@drover/foundation';
import type { Cli } from '../cli.ts';
import type { CopyFlags } from './flags.ts';
import type { CopyReport } from './report.ts';

/**
 * As cp -R: onto a directory here it goes into it under its own name, else it becomes the path; of `DIR/.` the contents go into the path. `-`
 * writes the tar to stdout. Paths are byte strings.
 *
 * The sandbox is not trusted: no entry leaves the target, no link that came with the copy is followed, nothing is written through a link that
 * is there, no device comes along, and without --archive no owner and no set-user-ID bit.
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
      hint: 'a copy out of a sandbox takes numbers; names are those of the sandbox, for a copy in',
    });
  }
  return { uid: Number(match[1]), gid: match[2] === undefined ? (process.getgid?.() ?? 0) : Number(match[2]) };
}
