import type { Client } from '@connectrpc/connect';
import type { api, link } from '@drover/protocol';
import type { Calls } from './calls.ts';

export interface JoinTokenOptions {
  /** Default 1 h. */
  readonly ttlSeconds?: number;
  /** Default 1. */
  readonly uses?: number;
  /** Labels that the host has, whatever it reports. */
  readonly labels?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

export interface DrainOptions {
  /** Stops the sandboxes that cannot move, instead of leaving them. */
  readonly stop?: boolean;
  /** Ends the progress reports; the drain goes on. */
  readonly signal?: AbortSignal;
}

/** Hosts by id or name. Everything rejects with a DroverError. */
export type HostsApi = ReturnType<typeof hostsApi>;

export function hostsApi(client: Client<typeof api.HostService>, calls: Calls) {
  const setScheduling = (host: string, cordoned: boolean, signal: AbortSignal | undefined): Promise<api.Host> =>
    calls.mutate((idempotencyKey, options) => client.setHostScheduling({ idempotencyKey, host, cordoned }, options), signal);
  return {
    list: async ({ includeRemoved = false, signal }: { includeRemoved?: boolean; signal?: AbortSignal } = {}): Promise<api.Host[]> =>
      (await calls.ask((options) => client.listHosts({ includeRemoved }, options), signal)).hosts,
    get: (host: string, signal?: AbortSignal): Promise<api.Host> => calls.ask((options) => client.getHost({ host }, options), signal),
    createJoinToken({ ttlSeconds = 0, uses = 0, labels = {}, signal }: JoinTokenOptions = {}): Promise<api.JoinToken> {
      const request = { ttlSeconds: BigInt(ttlSeconds), uses, labels: { ...labels } };
      return calls.mutate((idempotencyKey, options) => client.createJoinToken({ ...request, idempotencyKey }, options), signal);
    },
    cordon: (host: string, signal?: AbortSignal): Promise<api.Host> => setScheduling(host, true, signal),
    /** Also ends a drain. */
    uncordon: (host: string, signal?: AbortSignal): Promise<api.Host> => setScheduling(host, false, signal),
    drain: (host: string, { stop = false, signal }: DrainOptions = {}): AsyncIterable<api.DrainProgress> =>
      calls.stream((options) => client.drainHost({ host, stop }, options), signal),
    /** @param force also while it holds sandboxes, which become lost */
    async remove(host: string, { force = false, signal }: { force?: boolean; signal?: AbortSignal } = {}): Promise<void> {
      await calls.mutate((idempotencyKey, options) => client.removeHost({ idempotencyKey, host, force }, options), signal);
    },
    diagnose: (host: string, signal?: AbortSignal): Promise<link.Diagnostics> =>
      calls.ask((options) => client.diagnoseHost({ host }, options), signal),
  };
}
