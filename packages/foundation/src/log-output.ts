import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';
import { errnoOf } from './errors.ts';
import { logOutputBytes, logOutputRetryMs } from './limits.ts';

/** A destination of log lines. A write never waits for the reader, and never fails. */
export interface LogOutput {
  write(line: string): void;
}

/**
 * Writes log lines to an inherited descriptor, usually stderr. While the reader keeps up, a line is written before `write` returns, so that a
 * crash loses none. A reader that does not read (a stopped pager, a paused terminal) costs lines instead of the server: `logOutputBytes` wait,
 * further lines are dropped, and a line with their number follows when the reader continues.
 */
export function openLogOutput(fd: number): LogOutput {
  const stat = fstatSync(fd);
  // A socket cannot be opened again, and its writer shares it with no other program: journald passes one per service.
  if (stat.isSocket()) return new SocketOutput(new Socket({ fd, readable: false, writable: true }));
  if (stat.isFIFO() || stat.isCharacterDevice()) return new DescriptorOutput(reopened(fd));
  return new DescriptorOutput(fd);
}

/**
 * A separate description of the open file: O_NONBLOCK on the inherited one would apply to every program that shares it. Where that is not
 * allowed (another user's terminal), the inherited one is used.
 */
function reopened(fd: number): number {
  try {
    return openSync(`/dev/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch {
    return fd;
  }
}

const droppedLine = (count: number): string =>
  `${JSON.stringify({ level: 40, time: Date.now(), msg: `${count} log lines were dropped: their reader was too slow, or their disk full` })}\n`;

/** Writes directly, and keeps a bounded remainder when the descriptor accepts no more. */
export class DescriptorOutput implements LogOutput {
  readonly #fd: number;
  #rest: Buffer = Buffer.alloc(0);
  #dropped = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(fd: number) {
    this.#fd = fd;
  }

  write(line: string): void {
    if (this.#rest.length > 0) this.#flush();
    if (this.#rest.length > 0 || this.#dropped > 0) {
      this.#keep(Buffer.from(line));
      return;
    }
    this.#rest = this.#put(Buffer.from(line));
    if (this.#rest.length > 0) this.#retry();
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#flush();
    closeSync(this.#fd);
  }

  #keep(line: Buffer): void {
    if (this.#rest.length + line.length > logOutputBytes) this.#dropped++;
    else this.#rest = Buffer.concat([this.#rest, line]);
    this.#retry();
  }

  #retry(): void {
    // The timer does not keep the process alive.
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#flush();
      if (this.#rest.length > 0) this.#retry();
    }, logOutputRetryMs).unref();
  }

  #flush(): void {
    this.#rest = this.#put(this.#rest);
    if (this.#rest.length > 0 || this.#dropped === 0) return;
    const line = droppedLine(this.#dropped);
    this.#dropped = 0;
    this.#rest = this.#put(Buffer.from(line));
  }

  /** Returns the bytes that were not written. */
  #put(bytes: Buffer): Buffer {
    let at = 0;
    try {
      while (at < bytes.length) at += writeSync(this.#fd, bytes, at);
    } catch (error) {
      // A closed reader (EPIPE, EIO of a closed terminal) or a full disk must not end the server.
      const later = ['EAGAIN', 'EINTR', 'ENOSPC', 'EDQUOT'].includes(errnoOf(error) ?? '');
      return later ? bytes.subarray(at) : Buffer.alloc(0);
    }
    return Buffer.alloc(0);
  }
}

class SocketOutput implements LogOutput {
  readonly #socket: Socket;
  #dropped = 0;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('error', () => undefined);
    socket.unref();
  }

  write(line: string): void {
    if (this.#socket.writableLength > logOutputBytes) {
      this.#dropped++;
      return;
    }
    if (this.#dropped > 0) this.#socket.write(droppedLine(this.#dropped));
    this.#dropped = 0;
    this.#socket.write(line);
  }
}
