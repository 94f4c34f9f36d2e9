import { DroverError } from '@drover/foundation';
import { errorFromWire, type api } from '@drover/protocol';
import type { Operation, ResultValue } from '../../hub/index.ts';
import { hostCallTimeoutMs, imageFanOut } from '../../limits.ts';
import { hostState, type HostRow } from '../../model/index.ts';
import { hostFailure } from '../convert/index.ts';
import type { ApiContext } from '../edge/index.ts';

type Value<Case> = Extract<ResultValue, { readonly case: Case }>['value'];

/** The host that `reference` names; for an empty one, every host that can carry out commands. */
export async function hostsOf({ store }: ApiContext, reference: string): Promise<readonly HostRow[]> {
  if (reference !== '') return [await store.hosts.find(reference)];
  const usable = new Set(['ready', 'cordoned', 'draining']);
  return (await store.hosts.list()).filter((host) => usable.has(hostState(host)));
}

/** Runs `work` for every host, `imageFanOut` at a time. */
export async function forEachHost(hosts: readonly HostRow[], work: (host: HostRow) => Promise<void>): Promise<void> {
  const waiting = hosts.values();
  const worker = async (): Promise<void> => {
    for (const host of waiting) await work(host);
  };
  await Promise.all(Array.from({ length: Math.min(imageFanOut, hosts.length) }, worker));
}

/** One call to a host. @throws {DroverError} the host's error; timed-out; protocol-violation for another result than `expected` */
export async function callHost<Case extends ResultValue['case']>(
  { hub, clock }: ApiContext,
  host: HostRow,
  operation: Operation,
  expected: Case,
  signal: AbortSignal,
): Promise<Value<Case>> {
  const limited = AbortSignal.any([signal, AbortSignal.timeout(hostCallTimeoutMs)]);
  const result = await hub.call(host.id, operation, { signal: limited, deadline: new Date(clock.now() + hostCallTimeoutMs) });
  if (result.case === expected) return result.value as Value<Case>;
  throw new DroverError('protocol-violation', `host ${host.name} responded to ${operation.case} with ${result.case ?? 'nothing'}`);
}

/** Calls several hosts; the failure of one does not affect the others. @returns the failures */
export async function callHosts<Case extends ResultValue['case']>(
  context: ApiContext,
  hosts: readonly HostRow[],
  operation: (host: HostRow) => Operation,
  expected: Case,
  received: (value: Value<Case>, host: HostRow) => void,
  signal: AbortSignal,
): Promise<api.HostFailure[]> {
  const failures: api.HostFailure[] = [];
  await forEachHost(hosts, async (host) => {
    try {
      received(await callHost(context, host, operation(host), expected, signal), host);
    } catch (error) {
      signal.throwIfAborted();
      failures.push(hostFailure(context, host, error));
    }
  });
  return failures;
}

/** The error of a host, for a call that fails because of it. */
export function failureError({ error }: api.HostFailure): DroverError {
  return error === undefined ? new DroverError('internal', 'a host failed') : errorFromWire(error);
}
