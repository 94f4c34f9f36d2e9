import { chmod, mkdir, opendir, readdir, rm, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, isSandboxId, removeTree, type SandboxId } from '@drover/foundation';
import { initPort, logFile, type InitConfig, type MainProcess, type SecretFile } from '@drover/init';
import { makeDisk, mountDisk, unmountDisk, type Disk } from '../disks/index.ts';
import { runDiskBytes } from '../limits.ts';

export function runDirectoryOf(stateDirectory: string, id: SandboxId): string {
  return join(stateDirectory, 'run', id);
}

const runDiskOf = (stateDirectory: string, id: SandboxId): Disk => ({
  image: join(stateDirectory, 'run-disks', `${id}.img`),
  mountPoint: runDirectoryOf(stateDirectory, id),
});

const materialFiles = ['config.json', 'ca.pem', 'cert.pem', 'key.pem', 'token'] as const;

/** The files of one start, for init (I-6). */
export interface StartMaterial {
  readonly sandboxId: string;
  readonly project: string;
  readonly name: string;
  readonly hostname: string;
  readonly control: { readonly host: string; readonly port: number };
  readonly address: string;
  readonly controlPlaneUri: string;
  readonly main: MainProcess;
  readonly secrets: readonly SecretFile[];
  readonly stopGraceMs: number;
  /** 0: never. */
  readonly idleStopMs: number;
  readonly startCount: number;
  readonly certificatePem: string;
  readonly keyPem: string;
  readonly caPem: string;
  readonly bootstrapToken: string;
}

/** Files that outlive a start. */
const retained: ReadonlySet<string> = new Set([logFile, `${logFile}.1`]);

/**
 * Makes the run directory of one start, 0700, and removes the files of an earlier start but its logs. The workload may have put anything there, so
 * entries are read and removed one by one. With a disk limit the directory is a separate disk, so that it cannot evade the limit.
 */
export async function makeRunDirectory(stateDirectory: string, id: SandboxId, diskBytes: number): Promise<void> {
  const directory = runDirectoryOf(stateDirectory, id);
  const made = await mkdir(directory, { recursive: true, mode: 0o700 });
  if (diskBytes > 0) {
    await mkdir(join(stateDirectory, 'run-disks'), { recursive: true, mode: 0o700 });
    await makeDisk(runDiskOf(stateDirectory, id), runDiskBytes, 'no-journal');
    await chmod(directory, 0o700);
  } else if (made !== undefined) return;
  for await (const { name } of await opendir(directory)) {
    if (!retained.has(name)) await removeTree(join(directory, name));
  }
}

/** Mounts the directory again after a boot of the host. */
export async function restoreRunDirectory(stateDirectory: string, id: SandboxId): Promise<void> {
  await mountDisk(runDiskOf(stateDirectory, id));
}

export async function removeRunDirectory(stateDirectory: string, id: SandboxId): Promise<void> {
  const { image, mountPoint } = runDiskOf(stateDirectory, id);
  await unmountDisk({ mountPoint });
  await removeTree(mountPoint);
  await rm(image, { force: true });
}

/** Removes the run directories of all but `known`. */
export async function sweepRunDirectories(stateDirectory: string, known: ReadonlySet<SandboxId>): Promise<void> {
  const names = await Promise.all(['run', 'run-disks'].map((name) => namesIn(join(stateDirectory, name))));
  for (const name of new Set(names.flat().map((file) => file.replace(/\.img(\.new)?$/, '')))) {
    if (isSandboxId(name) && known.has(name)) continue;
    if (isSandboxId(name)) await removeRunDirectory(stateDirectory, name);
    else await removeTree(join(stateDirectory, 'run', name));
  }
}

async function namesIn(directory: string): Promise<readonly string[]> {
  return await readdir(directory).catch((error: unknown): string[] => {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  });
}

/**
 * Writes the files of one start into its run directory, mode 0400 (I-6). The config comes last: init does not start without it. The backend gives
 * them to the sandbox's root.
 */
export async function writeStartMaterial(directory: string, material: StartMaterial): Promise<void> {
  const config: InitConfig = {
    version: 1,
    sandboxId: material.sandboxId,
    hostname: material.hostname,
    controlPlaneUri: material.controlPlaneUri,
    control: material.control,
    project: material.project,
    name: material.name,
    listen: { host: material.address, port: initPort, peer: material.control.host },
    main: material.main,
    stopGraceMs: material.stopGraceMs,
    startCount: material.startCount,
    ...(material.secrets.length > 0 && { secrets: material.secrets }),
    ...(material.idleStopMs > 0 && { idleStopMs: material.idleStopMs }),
  };
  const files: Record<Exclude<(typeof materialFiles)[number], 'config.json'>, string> = {
    'ca.pem': material.caPem,
    'cert.pem': material.certificatePem,
    'key.pem': material.keyPem,
    token: material.bootstrapToken,
  };
  // The directory belongs to the sandbox already: an existing file is an error, and links are not followed.
  const write = async (name: string, data: string): Promise<void> =>
    await writeFile(join(directory, name), data, { mode: 0o400, flag: 'wx' });
  await Promise.all(Object.entries(files).map(async ([name, data]) => await write(name, data)));
  await write('config.json', JSON.stringify(config));
}

/** Removes the files of a start, its key first; logs stay. */
export async function removeStartMaterial(directory: string): Promise<void> {
  await removeFiles(directory, materialFiles);
}

/** The sandbox owns the directory, and may have replaced the files by anything. */
async function removeFiles(directory: string, names: readonly string[]): Promise<void> {
  const remove = async (path: string): Promise<void> => {
    try {
      await unlink(path);
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') await removeTree(path);
    }
  };
  await Promise.all(names.map(async (name) => await remove(join(directory, name))));
}
