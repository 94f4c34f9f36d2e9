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
 * The host's named volumes. Each is a disk, which is its quota. It stays mounted until it is removed; after a boot of the host it is mounted
 * at its next use. The control plane knows which sandboxes have a volume.
 */
export class VolumeStore {
  readonly #directory: string;
  /** Making, mounting and removing, one at a time. */
  readonly #serial = new SerialExecutor();

  /** @param directory made at first use */
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
      // Each time, since an earlier attempt may have failed between the two. A volume has no data before its creation has succeeded.
      await rmdir(join(disk.mountPoint, 'lost+found')).catch(ignoreAbsent);
      // A sandbox runs as any user. Users of the host cannot enter: see `makeDirectory`.
      await chmod(disk.mountPoint, 0o777);
    });
  }

  /** Mounts the volume and returns its path. @throws {DroverError} volume-not-found, runtime-failed */
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

  /** Removes the volume with its files. Absent: nothing. @throws {DroverError} runtime-failed */
  async remove(name: string): Promise<void> {
    await this.#serial.run(async () => {
      const disk = this.#diskOf(name);
      await unmountDisk(disk);
      await rm(disk.image, { force: true });
      // Unmounted, the directory is empty.
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
   * Closed to the users of the host: a volume is world-writable, and on a host without user namespaces a sandbox can put a program with root's
   * set-user-ID bit into it.
   */
  async #makeDirectory(): Promise<void> {
    await mkdir(this.#directory, { recursive: true });
    await chmod(this.#directory, 0o700);
  }

  /** The full volumes among these. */
  async full(names: readonly string[]): Promise<readonly string[]> {
    const found: string[] = [];
    for (const name of names) {
      const { mountPoint } = this.#diskOf(name);
      if ((await isDiskRoot(mountPoint)) && fullnessOf(await statfs(mountPoint)) !== undefined) found.push(name);
    }
    return found;
  }

  /** Of an unmounted volume: the space of its file on the host's disk. Bytes. */
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
