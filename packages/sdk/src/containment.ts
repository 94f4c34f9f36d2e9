import type { Client } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { containmentActions, containmentOf, type api, type ContainmentAction } from '@drover/protocol';
import type { Calls } from './calls.ts';

export interface ReleaseOptions {
  /** Generated when absent. A program that gives its own can repeat the call after a restart (L-20). */
  readonly idempotencyKey?: string;
  readonly signal?: AbortSignal;
}

export interface ContainOptions extends ReleaseOptions {
  /** Shown to everyone whom the containment stops. At most 500 characters. */
  readonly reason?: string;
}

/** Trust in a sandbox, and its containment. */
export function containmentApi(client: Client<typeof api.SandboxService>, calls: Calls) {
  return {
    /** Every trust check, with its evidence, its verdict and the time at which it was last made. */
    explain: (sandbox: string, signal?: AbortSignal): Promise<api.ExplainSandboxResponse> =>
      calls.ask((options) => client.explainSandbox({ sandbox }, options), signal),
    /**
     * Contains it (I-4), whatever its session is. A result that is not done is stored, and takes effect when the host reconnects.
     * @param actions at least one
     */
    async contain(
      sandbox: string,
      actions: readonly ContainmentAction[],
      containment: ContainOptions = {},
    ): Promise<api.ContainSandboxResponse> {
      if (actions.length === 0) {
        throw new DroverError('invalid-argument', 'no way to contain the sandbox is named', {
          hint: `name at least one of ${containmentActions.join(', ')}`,
        });
      }
      const { reason = '', idempotencyKey: key, signal } = containment;
      const request = { sandbox, actions: containmentOf(actions), reason };
      return await calls.mutate((idempotencyKey, options) => client.containSandbox({ ...request, idempotencyKey }, options), signal, key);
    },
    /** Lifts containments. @param actions absent or empty: everything that is in force */
    release(
      sandbox: string,
      actions: readonly ContainmentAction[] = [],
      { idempotencyKey: key, signal }: ReleaseOptions = {},
    ): Promise<api.ContainSandboxResponse> {
      const request = { sandbox, actions: containmentOf(actions) };
      return calls.mutate((idempotencyKey, options) => client.releaseSandbox({ ...request, idempotencyKey }, options), signal, key);
    },
  };
}
