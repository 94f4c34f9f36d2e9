import { closeSync } from 'node:fs';
import { libcFunctions, systemError } from './libc.ts';

const libc = libcFunctions({
  socket: { arguments: ['i32', 'i32', 'i32'], return: 'i32' },
  bind: { arguments: ['i32', 'buffer', 'u32'], return: 'i32' },
  listen: { arguments: ['i32', 'i32'], return: 'i32' },
});

/** Source: include/linux/socket.h, include/linux/net.h. */
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0o2000000;

/** listen(2). Node's own servers also begin to accept. @throws {Error} with `code` */
export function listenOn(fd: number, backlog: number): void {
  if (libc().listen(fd, backlog) !== 0) throw systemError('listen', String(fd));
}

/** A unix socket that listens at a path, which only its owner can open. @param path at most 107 bytes (unix(7)) @throws {Error} with `code` */
export function listenAtPath(path: string, backlog: number): number {
  const bytes = Buffer.from(path);
  const address = Buffer.alloc(2 + bytes.length + 1);
  address.writeUInt16LE(AF_UNIX);
  bytes.copy(address, 2);
  const fd = libc().socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) throw systemError('socket', path);
  // The mode is right from the first moment: no other user can connect between bind(2) and a chmod(2).
  const umask = process.umask(0o177);
  try {
    if (libc().bind(fd, address, address.length) !== 0) throw systemError('bind', path);
    listenOn(fd, backlog);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  } finally {
    process.umask(umask);
  }
}
