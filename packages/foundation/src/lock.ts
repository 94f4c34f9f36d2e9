import { createHash } from 'node:crypto';
import { realpath, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DroverError, errnoOf } from './errors.ts';

/**
 * Holds a directory for this process alone, until it is released or the process ends, however it ends: on Linux an abstract
 * unix socket named after the directory, which the kernel takes back (unix(7)), so that no stale lock is possible.
 * Processes in different network namespaces do not see each other's.
 * @param what who wants it, for the message: `control plane`
 * @throws {DroverError} failed-precondition when another process holds it
 */
export async function lockDirectory(directory: string, what: string): Promise<{ release(): Promise<void> }> {
  const name = `drover-${createHash('sha256')
    .update(await realpath(directory))
    .digest('hex')
    .slice(0, 32)}`;
  const path = process.platform === 'linux' ? `\0${name}` : join(tmpdir(), name);
  const server = createServer((socket) => socket.destroy());
  // Whether the lock is held must not keep the process alive.
  server.unref();
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => {
      reject(
        errnoOf(error) === 'EADDRINUSE'
          ? new DroverError('failed-precondition', `a ${what} is already running on ${directory}`, {
              hint: 'stop it first, or give this one another directory',
              cause: error,
            })
          : error,
      );
    });
    server.listen(path, resolve);
  });
  return {
    async release() {
      await new Promise<void>((resolve) => server.close(() => resolve()));
      if (process.platform !== 'linux') await rm(path, { force: true });
    },
  };
}
