import { lookup } from 'node:dns/promises';
import { connect, isIP, type Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { formatHost, parseAddress, parseHost, type EgressRequest, type Policy } from '@drover/spec/policy';
import { limits } from '../limits.ts';
import { judgeAddress } from '../policy/index.ts';
import { denied, RefusedError } from './refusal.ts';

/** Resolves a name to addresses, as text. Tests pass their own. */
export type Resolve = (name: string) => Promise<readonly string[]>;

/** The system's resolver, with its hosts file and search order. */
export const systemResolve: Resolve = async (name) => (await lookup(name, { all: true, verbatim: true })).map((a) => a.address);

/** The host's own addresses, cached for `ownAddressesMs`. */
export function ownAddresses(now: () => number = () => performance.now()): () => ReadonlySet<string> {
  let known: ReadonlySet<string> = new Set();
  let until = Number.NEGATIVE_INFINITY;
  return () => {
    if (now() >= until) {
      const all = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
      known = new Set(all.map((a) => parseAddress(a.address.replace(/%.*$/, '')).toString()));
      until = now() + limits.ownAddressesMs;
    }
    return known;
  };
}

/**
 * Resolves a destination once, and returns the addresses that may be dialled for it (G-16). The checked addresses are dialled, so that DNS
 * rebinding fails.
 * @throws {RefusedError} 403 when every address is forbidden, 502 or 504 when the name has none
 */
export async function permittedAddresses(
  policy: Policy,
  request: EgressRequest,
  resolve: Resolve,
  own: ReadonlySet<string>,
): Promise<readonly string[]> {
  const { host, port } = request;
  const name = formatHost(host);
  const found = host.kind === 'address' ? [host.address] : (await resolveInTime(host.name, resolve)).map((text) => parseAddress(text));
  const verdicts = found.map((address) => ({ address: address.toString(), verdict: judgeAddress(policy, address, request, own) }));
  const permitted = verdicts.filter((v) => v.verdict.allowed).map((v) => v.address);
  if (permitted.length > 0) return alternateFamilies(permitted).slice(0, limits.dialAddresses);
  const [first] = verdicts;
  if (first === undefined) throw unresolved(name, undefined);
  throw denied(first.verdict.rule, name, port);
}

async function resolveInTime(name: string, resolve: Resolve): Promise<readonly string[]> {
  const timer = new AbortController();
  try {
    return await Promise.race([
      resolve(name).catch((error: unknown) => {
        if (error instanceof RefusedError) throw error;
        throw unresolved(name, error);
      }),
      delay(limits.resolveTimeoutMs, undefined, { signal: timer.signal }).then(() => {
        throw new RefusedError(
          { status: 504, error: 'timed-out', rule: 'no rule', hint: "see the host's DNS configuration" },
          `${name} was not resolved in ${limits.resolveTimeoutMs} ms`,
        );
      }),
    ]);
  } finally {
    timer.abort();
  }
}

function unresolved(name: string, cause: unknown): RefusedError {
  return new RefusedError(
    { status: 502, error: 'name-not-resolved', rule: 'no rule', hint: "check the name, and the host's DNS configuration" },
    `${name} has no address`,
    cause,
  );
}

/**
 * Puts the first address of the other family second, then lets the families alternate (RFC 8305, section 4): a network without a
 * working IPv6 route costs one attempt, not one for each IPv6 address of the name.
 */
export function alternateFamilies(addresses: readonly string[]): readonly string[] {
  const first = addresses.filter((address) => isIP(address) === isIP(addresses[0] ?? ''));
  const second = addresses.filter((address) => isIP(address) !== isIP(addresses[0] ?? ''));
  return first.flatMap((address, i) => [address, ...second.slice(i, i + 1)]).concat(second.slice(first.length));
}

/**
 * Connects to one of `addresses` (RFC 8305, section 5): an attempt that fails, or has not succeeded after `attemptDelayMs`, starts the
 * next one beside it. The first connection wins, and the other attempts are destroyed.
 * @throws {RefusedError} 502 or 504
 */
export async function dialFirst(addresses: readonly string[], port: number, name: string, signal: AbortSignal): Promise<Socket> {
  const stop = new AbortController();
  const running = AbortSignal.any([signal, stop.signal]);
  const attempts: Promise<Socket>[] = [];
  let winner: Socket | undefined;
  try {
    for (const address of addresses) {
      const attempt = dial(address, port, running);
      attempts.push(attempt);
      const failed = attempt.then(
        async () => await new Promise<never>(() => undefined),
        () => undefined,
      );
      const connected = Promise.any(attempts).catch(() => undefined);
      winner = await Promise.race([connected, failed, delay(limits.attemptDelayMs, undefined, { signal: running })]);
      if (winner !== undefined) return winner;
    }
    winner = await Promise.any(attempts);
    return winner;
  } catch (error) {
    signal.throwIfAborted();
    throw unreachable(error instanceof AggregateError ? error.errors.at(-1) : error, `${name}:${port}`);
  } finally {
    stop.abort();
    // Two attempts can succeed in one turn of the event loop.
    for (const attempt of attempts) void attempt.then((socket) => void (socket === winner || socket.destroy())).catch(() => undefined);
  }
}

function unreachable(last: unknown, target: string): RefusedError {
  const late = last instanceof Error && last.message === lateMessage;
  return new RefusedError(
    {
      status: late ? 504 : 502,
      error: late ? 'timed-out' : 'upstream-unreachable',
      rule: 'no rule',
      hint: 'a rule allows it, but the server does not accept the connection',
    },
    `${target} cannot be reached (${last instanceof Error ? last.message : 'no address'})`,
    last,
  );
}

const lateMessage = 'no response';

async function dial(address: string, port: number, signal: AbortSignal): Promise<Socket> {
  signal.throwIfAborted();
  // Parsed again, so that no name can reach the resolver in connect().
  const host = parseHost(address);
  if (host.kind !== 'address') throw new TypeError(`${address} is not an address`);
  return await new Promise<Socket>((resolve, reject) => {
    const socket = connect({ host: host.address.toString(), port, allowHalfOpen: true, noDelay: true });
    // A reset before the socket has a reader must not end the daemon.
    socket.on('error', () => undefined);
    const settle = (error?: Error): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
      socket.off('error', settle);
      if (error === undefined) return resolve(socket);
      socket.destroy();
      reject(error);
    };
    const abort = (): void => settle(signal.reason as Error);
    const timer = setTimeout(() => settle(new Error(lateMessage)), limits.dialTimeoutMs);
    signal.addEventListener('abort', abort, { once: true });
    socket.once('error', settle);
    socket.once('connect', () => settle());
  });
}
