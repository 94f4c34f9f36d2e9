import { constants } from 'node:fs';
import { chmod, lstat, mkdir, open, rm, stat, symlink } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { DroverError, errnoOf } from '@drover/foundation';
import { extract, type Header } from 'tar-stream';
import type { Cli } from '../cli.ts';
import { maxCopyBytes, maxCopyEntries } from '../limits.ts';

/**
 * As cp -R: onto a directory here it goes into it under its own name, else it becomes the path. `-` writes the tar to stdout.
 *
 * The sandbox is not trusted: no entry leaves the target, no link that came with the copy is followed, nothing is written
 * through a link that is there, and no setuid bit, owner or device comes along.
 */
export async function copyOut(cli: Cli, reference: string, source: string, target: string): Promise<{ entries: number; bytes: number }> {
  const client = await cli.connect();
  if (target === '-') {
    for await (const chunk of client.sandboxes.copyOut(reference, source, cli.signal) as AsyncIterable<Uint8Array>)
      await cli.out.bytes(chunk);
    return { entries: 0, bytes: 0 };
  }
  const path = resolve(target);
  const into = await existingDirectory(path);
  if (!into) await parentMustExist(path, target);
  const unpack = new Unpack(into ? path : dirname(path), into ? undefined : basename(path));
  const tar = extract();
  // tar-stream's streams are not Node's: pipeline() would take their end for a premature one.
  const stream = client.sandboxes.copyOut(reference, source, cli.signal);
  stream.on('error', (error) => tar.destroy(error));
  stream.pipe(tar);
  for await (const entry of tar) await unpack.entry(entry as unknown as Entry);
  await unpack.finish();
  // The sandbox leaves out what means nothing elsewhere.
  if (unpack.entries === 0) throw notCopied(source);
  return { entries: unpack.entries, bytes: unpack.bytes };
}

/** Sockets, pipes and devices are left out of a directory; asked for by name, somebody waits for them. */
export function notCopied(path: string): DroverError {
  return new DroverError('failed-precondition', `${path} is neither a file, a directory nor a link: there is nothing to copy`, {
    hint: 'read it in the sandbox, with `drover exec`, or here, and copy what it gives',
  });
}

async function existingDirectory(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}

async function parentMustExist(path: string, said: string): Promise<void> {
  if (said.endsWith('/') || !(await existingDirectory(dirname(path)))) {
    throw new DroverError('path-not-found', `there is no directory ${said.endsWith('/') ? said : dirname(path)}`, {
      hint: 'make it first',
    });
  }
}

const inParts = 'copy it in parts, or pack it in the sandbox first';
const notToBeTrusted = 'what runs in the sandbox may have changed its init: trust nothing that was copied, and see drover sandbox contain';

/** What tar-stream gives for an entry; its stream must be read or resumed. */
type Entry = AsyncIterable<Uint8Array> & { readonly header: Header; resume(): unknown };

/** Writes the entries of an untrusted tar below a directory. Exported for its tests. */
export class Unpack {
  entries = 0;
  bytes = 0;
  readonly #base: string;
  readonly #rename: string | undefined;
  /** Modes of directories, set at the end: a read-only one could not be filled. */
  readonly #modes = new Map<string, number>();

  /** @param rename what the topmost name becomes */
  constructor(base: string, rename: string | undefined) {
    this.#base = base;
    this.#rename = rename;
  }

  async entry(entry: Entry): Promise<void> {
    const { name, type, mode, size, linkname } = entry.header;
    if (++this.entries > maxCopyEntries)
      throw new DroverError('too-large', `the copy has more than ${maxCopyEntries} entries`, { hint: inParts });
    if ((this.bytes += type === 'file' ? size : 0) > maxCopyBytes)
      throw new DroverError('too-large', `the copy has more than ${maxCopyBytes} bytes`, { hint: inParts });
    const parts = this.#parts(name);
    if (parts.length > 0) {
      const path = join(this.#base, ...parts);
      await this.#realParents(parts);
      if (type === 'directory') await this.#directory(path, mode & 0o777);
      else if (type === 'file' || type === 'contiguous-file') return this.#file(path, mode & 0o777, entry);
      else if (type === 'symlink' && linkname != null) await this.#replace(path, () => symlink(linkname, path));
      else if (type === 'link' && linkname != null) await this.#hardLink(path, linkname);
      // Devices and pipes of a sandbox have no business here.
    }
    entry.resume();
  }

  async finish(): Promise<void> {
    for (const [path, mode] of [...this.#modes].reverse()) await chmod(path, mode);
  }

  #parts(name: string): string[] {
    const parts = name.split('/').filter((part) => part !== '' && part !== '.');
    if (name.startsWith('/') || parts.includes('..') || name.includes('\0')) {
      throw new DroverError('unsafe-archive', `the sandbox sent a path that leaves the target: ${JSON.stringify(name.slice(0, 100))}`, {
        hint: notToBeTrusted,
      });
    }
    if (this.#rename !== undefined && parts.length > 0) parts[0] = this.#rename;
    return parts;
  }

  /** Every directory above the entry is a real one, below the base: a link that the sandbox sent is not walked through. */
  async #realParents(parts: readonly string[]): Promise<void> {
    for (let i = 1; i < parts.length; i++) {
      const path = join(this.#base, ...parts.slice(0, i));
      try {
        if ((await lstat(path)).isDirectory()) continue;
      } catch (error) {
        if (errnoOf(error) !== 'ENOENT') throw error;
        await mkdir(path);
        continue;
      }
      throw new DroverError('unsafe-archive', `${path} is not a directory, and the copy has something below it`, { hint: notToBeTrusted });
    }
  }

  async #directory(path: string, mode: number): Promise<void> {
    try {
      await mkdir(path, { mode: mode | 0o700 });
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      if (!(await lstat(path)).isDirectory()) {
        throw new DroverError('failed-precondition', `${path} is there, and is not a directory`, {
          hint: 'choose another target, or remove it',
        });
      }
    }
    this.#modes.set(path, mode);
  }

  async #file(path: string, mode: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    await this.#replace(path, async () => {
      const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, mode | 0o200);
      try {
        for await (const chunk of content) await file.writeFile(chunk);
        await file.chmod(mode);
      } catch (error) {
        // Nobody takes half a file for the whole one.
        await rm(path);
        throw error;
      } finally {
        await file.close();
      }
    });
  }

  /** A second name of a file of this copy becomes a copy of it. */
  async #hardLink(path: string, linkname: string): Promise<void> {
    const parts = this.#parts(linkname);
    await this.#realParents(parts);
    const source = await open(join(this.#base, ...parts), constants.O_RDONLY | constants.O_NOFOLLOW);
    try {
      const { mode } = await source.stat();
      await this.#file(path, mode & 0o777, source.createReadStream({ autoClose: false }) as AsyncIterable<Uint8Array>);
    } finally {
      await source.close();
    }
  }

  async #replace(path: string, make: () => Promise<void>): Promise<void> {
    try {
      await make();
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      if ((await lstat(path)).isDirectory())
        throw new DroverError('failed-precondition', `${path} is a directory`, { hint: 'choose another target, or remove it' });
      await rm(path);
      await make();
    }
  }
}
