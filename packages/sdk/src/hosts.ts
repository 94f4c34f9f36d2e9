import type { Client } from '@connectrpc/connect';
import type { api, link } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';

export interface JoinTokenOptions {
  /** Default 1 h. */
  readonly ttlSeconds?: number;
  /** Default 1. */
  readonly uses?: number;
  /** Labels that the host gets whatever it says. */
  readonly labels?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

export interface DrainOptions {
  /** Stops what cannot move, instead of leaving it. */
  readonly stop?: boolean;
  /** Ends the watching; the drain goes on. */
  readonly signal?: AbortSignal;
}

/** Hosts by id or name. Everything rejects with a DroverError. */
export interface HostsApi {
  list(options?: { readonly includeRemoved?: boolean; readonly signal?: AbortSignal }): Promise<api.Host[]>;
  get(reference: string, signal?: AbortSignal): Promise<api.Host>;
  createJoinToken(options?: JoinTokenOptions): Promise<api.JoinToken>;
  cordon(reference: string, signal?: AbortSignal): Promise<api.Host>;
  /** Also ends a drain. */
  uncordon(reference: string, signal?: AbortSignal): Promise<api.Host>;
  drain(reference: string, options?: DrainOptions): AsyncIterable<api.DrainProgress>;
  /** @param force also while it holds sandboxes; they become lost */
  remove(reference: string, options?: { readonly force?: boolean; readonly signal?: AbortSignal }): Promise<void>;
  diagnose(reference: string, signal?: AbortSignal): Promise<link.Diagnostics>;
}

export function hostsApi(client: Client<typeof api.HostService>, calls: Calls): HostsApi {
  const schedule = async (host: string, cordoned: boolean, signal: AbortSignal | undefined): Promise<api.Host> =>
    await calls.mutate((idempotencyKey) => client.setHostScheduling({ idempotencyKey, host, cordoned }, withSignal(signal)), signal);
  return {
    async list({ includeRemoved = false, signal } = {}) {
      return (await calls.ask(() => client.listHosts({ includeRemoved }, withSignal(signal)), signal)).hosts;
    },
    get: (host, signal) => calls.ask(() => client.getHost({ host }, withSignal(signal)), signal),
    createJoinToken: ({ ttlSeconds = 0, uses = 0, labels = {}, signal } = {}) =>
      calls.mutate(
        (idempotencyKey) =>
          client.createJoinToken({ idempotencyKey, ttlSeconds: BigInt(ttlSeconds), uses, labels: { ...labels } }, withSignal(signal)),
        signal,
      ),
    cordon: (host, signal) => schedule(host, true, signal),
    uncordon: (host, signal) => schedule(host, false, signal),
    drain: (host, { stop = false, signal } = {}) => calls.stream(client.drainHost({ host, stop }, withSignal(signal))),
    async remove(host, { force = false, signal } = {}) {
      await calls.mutate((idempotencyKey) => client.removeHost({ idempotencyKey, host, force }, withSignal(signal)), signal);
    },
    diagnose: (host, signal) => calls.ask(() => client.diagnoseHost({ host }, withSignal(signal)), signal),
  };
}
