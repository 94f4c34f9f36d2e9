import { chmod, mkdir, readdir, rm, rmdir, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, parseName, SerialExecutor } from '@drover/foundation';
import { isMounted } from '@drover/linux';
import { fullnessOf, isDiskRoot, makeDisk, mountDisk, unmountDisk, type Disk } from '../disks/index.ts';

export interface HostVolume {
  readonly name: string;
  readonly sizeBytes: number;
  readonly usedBytes: number;
}

/**
 * The host's named volumes: each a disk of its own, which is its quota. It stays mounted until it is removed; after a boot it is mounted
 * when it is next used. Which sandboxes have a volume is the control plane's to know.
 */
export class VolumeStore {
  readonly #directory: string;
  /** Making, mounting and removing, one at a time. */
  readonly #serial = new SerialExecutor();

  /** @param directory made when it is needed */
  constructor(directory: string) {
    this.#directory = directory;
  }

  /**
   * Makes an empty volume, unless there is one of this name and size.
   * @throws {DroverError} name-taken, missing-component, runtime-failed
   */
  async create(name: string, sizeBytes: number): Promise<void> {
    await this.#serial.run(async () => {
      const disk = this.#diskOf(name);
      const size = await sizeOf(disk);
      if (size !== undefined && size !== sizeBytes) {
        throw new DroverError('name-taken', `this host has a volume ${name} of another size, ${size} bytes`, {
          hint: 'choose another name',
        });
      }
      await this.#makeDirectory();
      for (const path of [join(this.#directory, 'images'), disk.mountPoint]) await mkdir(path, { recursive: true });
      await makeDisk(disk, sizeBytes, 'journal');
      // Each time: an attempt before may have ended between the two. It is called until the volume is ready, so there is no data in it.
      await rmdir(join(disk.mountPoint, 'lost+found')).catch(ignoreAbsent);
      // A sandbox runs as any user. Users of the host do not get here: see `makeDirectory`.
      await chmod(disk.mountPoint, 0o777);
    });
  }

  /** Where a sandbox finds the volume. @throws {DroverError} volume-not-found, runtime-failed */
  async mount(name: string): Promise<string> {
    return await this.#serial.run(async () => {
      const disk = this.#diskOf(name);
      if ((await sizeOf(disk)) === undefined) {
        throw new DroverError('volume-not-found', `the volume ${name} is not on this host`, {
          hint: `its file is missing; remove it with \`drover volume rm ${name}\` and create it again`,
        });
      }
      await this.#makeDirectory();
      await mkdir(disk.mountPoint, { recursive: true });
      await mountDisk(disk);
      return disk.mountPoint;
    });
  }

  /** Removes the volume with what is in it; none: nothing. @throws {DroverError} runtime-failed */
  async remove(name: string): Promise<void> {
    await this.#serial.run(async () => {
      const disk = this.#diskOf(name);
      await unmountDisk(disk);
      await rm(disk.image, { force: true });
      // Only ever an empty directory once it is unmounted.
      await rmdir(disk.mountPoint).catch(ignoreAbsent);
    });
  }

  async list(): Promise<readonly HostVolume[]> {
    const files = await readdir(join(this.#directory, 'images')).catch((error: unknown): string[] => {
      if (errnoOf(error) === 'ENOENT') return [];
      throw error;
    });
    const names = files.filter((file) => file.endsWith('.img')).map((file) => file.slice(0, -'.img'.length));
    return await Promise.all(
      names.map(async (name) => {
        const disk = this.#diskOf(name);
        return { name, sizeBytes: (await sizeOf(disk)) ?? 0, usedBytes: await this.#usedOf(disk) };
      }),
    );
  }

  /**
   * Closed to the users of the host. A volume is writable for everyone, and on a host without user namespaces a sandbox can leave a program in
   * it that has root's set-user-ID bit.
   */
  async #makeDirectory(): Promise<void> {
    await mkdir(this.#directory, { recursive: true });
    await chmod(this.#directory, 0o700);
  }

  /** Those of them that are full. */
  async full(names: readonly string[]): Promise<readonly string[]> {
    const found: string[] = [];
    for (const name of names) {
      const { mountPoint } = this.#diskOf(name);
      if ((await isDiskRoot(mountPoint)) && fullnessOf(await statfs(mountPoint)) !== undefined) found.push(name);
    }
    return found;
  }

  /** Of one that is not mounted, what its file takes of the host's disk. Bytes. */
  async #usedOf({ image, mountPoint }: Disk): Promise<number> {
    if (!isMounted(mountPoint)) return (await stat(image)).blocks * 512;
    const { blocks, bfree, bsize } = await statfs(mountPoint);
    return (blocks - bfree) * bsize;
  }

  #diskOf(text: string): Disk {
    const name = parseName(text);
    return { image: join(this.#directory, 'images', `${name}.img`), mountPoint: join(this.#directory, 'mounts', name) };
  }
}

function ignoreAbsent(error: unknown): void {
  if (errnoOf(error) !== 'ENOENT') throw error;
}

async function sizeOf({ image }: Disk): Promise<number | undefined> {
  try {
    return (await stat(image)).size;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
