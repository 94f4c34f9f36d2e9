import { chmod, mkdir } from 'node:fs/promises';
import { join } from 'node:path';

/** Mounts of the runtime program that a standby keeps when it becomes a sandbox. */
export const keptMounts = ['/proc', '/sys', '/dev', '/.drover'] as const;
/** Where the sandbox's root is assembled. */
export const nextRoot = '/next';

/** The root of all standbys, which none of them can write to. */
export function standbyRoot(stateDirectory: string): string {
  return join(stateDirectory, 'standby-root');
}

export async function makeStandbyRoot(stateDirectory: string): Promise<void> {
  const root = standbyRoot(stateDirectory);
  for (const path of ['/', nextRoot, ...keptMounts]) {
    await mkdir(join(root, path), { recursive: true });
    // Independent of this process's umask: the root of a standby is an unprivileged user of the host.
    await chmod(join(root, path), 0o755);
  }
}
