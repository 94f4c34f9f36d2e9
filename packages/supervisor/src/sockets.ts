import { chmodSync, closeSync, rmSync } from 'node:fs';
import { BoundSocket } from 'node:net';
import { DroverError } from '@drover/foundation';
import { listenAtPath, listenOn } from '@drover/linux';
import { limits } from './limits.ts';

/** Where to listen: an address and a port (0: any), or the path of a unix socket. */
export type ListenAddress = { readonly host: string; readonly port: number } | { readonly path: string; readonly mode: number };

/** A descriptor that a supervisor passes to a daemon and to its replacements. */
export interface PassedDescriptor extends Disposable {
  /** Its name in LISTEN_FDNAMES. */
  readonly name: string;
  readonly fd: number;
}

/** A socket that listens for as long as its supervisor lives, so that its daemon can restart without refusing a connection (G-9). */
export interface ListeningSocket extends PassedDescriptor {
  /** `address:port` with the port that the kernel chose, or the path. */
  readonly address: string;
}

/** Source: unix(7). */
const maxUnixPathBytes = 107;

/** Opens a listening socket. @throws {DroverError} port-in-use, missing-privilege, unavailable, invalid-argument */
export function openListener(name: string, at: ListenAddress): ListeningSocket {
  try {
    return 'path' in at ? openUnixListener(name, at.path, at.mode) : openTcpListener(name, at.host, at.port);
  } catch (error) {
    throw DroverError.from(error, 'unavailable');
  }
}

function openTcpListener(name: string, host: string, port: number): ListeningSocket {
  const socket = new BoundSocket({ host, port });
  try {
    listenOn(socket.fd(), limits.backlog);
  } catch (error) {
    socket.close();
    throw error;
  }
  const { address, family, port: bound } = socket.address();
  return {
    name,
    fd: socket.fd(),
    address: `${family === 'IPv6' ? `[${address}]` : address}:${bound}`,
    [Symbol.dispose]: () => socket.close(),
  };
}

/** A socket file that a dead process left is replaced. */
function openUnixListener(name: string, path: string, mode: number): ListeningSocket {
  if (Buffer.byteLength(path) > maxUnixPathBytes) {
    throw new DroverError('invalid-argument', `${path} is too long for a unix socket`, {
      hint: `use a path of at most ${maxUnixPathBytes} bytes`,
    });
  }
  rmSync(path, { force: true });
  const fd = listenAtPath(path, limits.backlog);
  chmodSync(path, mode);
  return {
    name,
    fd,
    address: path,
    [Symbol.dispose]: () => {
      closeSync(fd);
      rmSync(path, { force: true });
    },
  };
}

/** The first descriptor that is passed (sd_listen_fds(3), SD_LISTEN_FDS_START). */
export const firstPassedFd = 3;

/** The variables that announce sockets passed from descriptor 3 on, but LISTEN_PID: only the started process knows its pid. */
export function passingEnvironment(passed: readonly PassedDescriptor[]): Record<string, string> {
  if (passed.length === 0) return {};
  return { LISTEN_FDS: String(passed.length), LISTEN_FDNAMES: passed.map(({ name }) => name).join(':') };
}

/** The command that sets LISTEN_PID and becomes `argv`: the pid stays the same over exec. */
export function withListenPid(argv: readonly [string, ...string[]]): readonly [string, ...string[]] {
  return ['/bin/sh', '-c', 'LISTEN_PID=$$ exec "$@"', 'sh', ...argv];
}

/**
 * The sockets that a supervisor passed to this process, by name, in the order in which they were passed (sd_listen_fds(3)). The variables
 * are removed from `env`, so that children do not take the sockets for theirs. Variables for another pid are those of a parent: none are passed.
 * @throws {DroverError} invalid-config
 */
export function receiveSockets(env: NodeJS.ProcessEnv = process.env, pid = process.pid): ReadonlyMap<string, readonly number[]> {
  const { LISTEN_PID: forPid, LISTEN_FDS: text, LISTEN_FDNAMES: names } = env;
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete env[name];
  const received = new Map<string, number[]>();
  if (text === undefined || forPid !== String(pid)) return received;
  const count = /^\d{1,4}$/.test(text) ? Number(text) : Number.NaN;
  if (!(count <= limits.sockets)) {
    throw new DroverError('invalid-config', `LISTEN_FDS is ${JSON.stringify(text)}, not a number of sockets from 0 to ${limits.sockets}`);
  }
  const parts = names?.split(':') ?? [];
  if (names !== undefined && parts.length !== count) {
    throw new DroverError('invalid-config', `LISTEN_FDNAMES has ${parts.length} names for ${count} sockets`);
  }
  for (let i = 0; i < count; i++) {
    // The name of an unnamed socket, as sd_listen_fds_with_names(3) has it.
    const name = parts[i] ?? 'unknown';
    received.set(name, [...(received.get(name) ?? []), firstPassedFd + i]);
  }
  return received;
}
