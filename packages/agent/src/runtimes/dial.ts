import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { DroverError, errnoOf, type Clock } from '@drover/foundation';
import { initDialMs, initTakesConfigMs, sandboxConnectMs } from '../limits.ts';
import { configTaken } from './config-taken.ts';

export interface DialOptions {
  readonly address: string;
  readonly port: number;
  /** Init's run directory: try again while nothing listens yet, for it is starting. Undefined: one try. */
  readonly runDirectory: string | undefined;
  /** Has the sandbox ended? Then waiting is over. */
  readonly hasEnded: () => Promise<boolean>;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/** What a port says while init is not up, or the network is settling. */
const notYet = new Set(['ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH', 'ETIMEDOUT']);

/** A connection into a sandbox, half-open allowed: each side ends for itself. @throws {DroverError} sandbox-not-running, unavailable */
export async function dialSandbox(options: DialOptions): Promise<Duplex> {
  const { clock, signal, runDirectory } = options;
  const deadline = clock.now() + initDialMs;
  for (let delay = 4; ; delay = Math.min(16, delay * 2)) {
    signal.throwIfAborted();
    // A try before init has its config is in vain, and costs what much else of a start costs.
    if (runDirectory !== undefined) await configTaken(runDirectory, initTakesConfigMs, clock, signal);
    try {
      return await connectOnce(options.address, options.port, signal);
    } catch (error) {
      signal.throwIfAborted();
      const where = `${options.address}:${options.port}`;
      if (await options.hasEnded()) throw new DroverError('sandbox-not-running', 'the sandbox has ended', { cause: error });
      if (runDirectory === undefined || !notYet.has(errnoOf(error) ?? '')) {
        throw new DroverError('unavailable', `nothing answers at ${where} in the sandbox`, {
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
  // Stays for the socket's life: a reset that comes before somebody reads it must not end the process.
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
