import { once } from 'node:events';
import { existsSync, watch, type FSWatcher } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { DroverError, errnoOf, type Clock } from '@drover/foundation';
import { initDialMs, initTakesConfigMs, sandboxConnectMs } from '../../limits.ts';

export interface DialOptions {
  readonly address: string;
  readonly port: number;
  /** Init's run directory, for its port: tried again while init starts. Undefined: one try. */
  readonly runDirectory: string | undefined;
  /** Ends the waiting. */
  readonly hasEnded: () => boolean;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/** Errors of a port whose init is not up yet, or whose network is settling. */
const notYet = new Set(['ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH', 'ETIMEDOUT']);

/** A connection into a sandbox; each direction ends independently. @throws {DroverError} sandbox-not-running, unavailable */
export async function dialSandbox(options: DialOptions): Promise<Duplex> {
  const { clock, signal, runDirectory } = options;
  const deadline = clock.now() + initDialMs;
  for (let delay = 4; ; delay = Math.min(16, delay * 2)) {
    signal.throwIfAborted();
    // A try before init has its config fails, and takes CPU from the start.
    if (runDirectory !== undefined) await configTaken(runDirectory, initTakesConfigMs, clock, signal);
    try {
      return await connectOnce(options.address, options.port, signal);
    } catch (error) {
      signal.throwIfAborted();
      const where = `${options.address}:${options.port}`;
      if (options.hasEnded()) throw new DroverError('sandbox-not-running', 'the sandbox has ended', { cause: error });
      if (runDirectory === undefined || !notYet.has(errnoOf(error) ?? '')) {
        throw new DroverError('unavailable', `nothing listens at ${where} in the sandbox`, {
          hint: 'is the program in the sandbox listening on that port?',
          cause: error,
        });
      }
      if (clock.now() >= deadline)
        throw new DroverError('unavailable', `init did not listen on ${where} within ${initDialMs} ms`, { cause: error });
      await clock.sleep(delay, signal);
    }
  }
}

async function connectOnce(host: string, port: number, signal: AbortSignal): Promise<Socket> {
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true });
  // Stays for the socket's life: a reset before the first read must not end the process.
  socket.on('error', () => undefined);
  const timer = setTimeout(() => socket.destroy(timeout()), sandboxConnectMs);
  const abort = (): void => void socket.destroy(signal.reason as Error);
  signal.addEventListener('abort', abort, { once: true });
  try {
    await once(socket, 'connect');
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
  }
}

function timeout(): Error {
  return Object.assign(new Error('connecting took too long'), { code: 'ETIMEDOUT' });
}

/**
 * Waits until init has read its config, which it removes just before it listens, and at most `ms`. The sandbox can put another file there, so the
 * caller must not rely on it.
 * @throws the signal's reason
 */
async function configTaken(runDirectory: string, ms: number, clock: Clock, signal: AbortSignal): Promise<void> {
  const config = join(runDirectory, 'config.json');
  if (!existsSync(config)) return;
  const taken = Promise.withResolvers<void>();
  const done = new AbortController();
  let watcher: FSWatcher | undefined;
  try {
    watcher = watch(runDirectory, { persistent: false }, () => {
      if (!existsSync(config)) taken.resolve();
    });
    // The directory was removed, or the host has no more inotify watches: the time expires.
    watcher.on('error', () => watcher?.close());
  } catch {
    // The same.
  }
  try {
    if (!existsSync(config)) return;
    await Promise.race([taken.promise, clock.sleep(ms, AbortSignal.any([signal, done.signal]))]);
  } finally {
    done.abort();
    watcher?.close();
  }
}
