import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError, isSandboxId, type SandboxId } from '@drover/foundation';
import { actionsOf, api, containmentActions } from '@drover/protocol';
import { maxContainReasonLength } from '../../limits.ts';
import { containmentsOf, type SandboxRow } from '../../model/index.ts';
import type { Tables } from '../../store/index.ts';
import { describeOne } from '../convert/index.ts';
import { callerOf, once, type ApiContext } from '../edge/index.ts';
import { contain, notInForce, release, resultOf } from './containment-actions.ts';
import { containProgress, releaseProgress, untilSettled, type ProgressOf } from './containment-progress.ts';

type Methods = Pick<ServiceImpl<typeof api.SandboxService>, 'containSandbox' | 'releaseSandbox'>;
const methods = api.SandboxService.method;

/**
 * Containment (I-4). One transaction stores it, without a session or trust in one; then the response waits, within a limit, for the host to
 * carry it out. A result with a message in the stored response is final.
 */
export function containmentMethods(context: ApiContext): Methods {
  const { store, sessions, clock } = context;

  async function respond(
    stored: api.ContainSandboxResponse,
    progressOf: ProgressOf,
    signal: AbortSignal,
  ): Promise<api.ContainSandboxResponse> {
    const id = stored.sandbox?.id ?? '';
    if (!isSandboxId(id)) return stored;
    const { row, results } = await untilSettled(context, id, stored.results, progressOf, signal);
    const sandbox = row === undefined ? stored.sandbox : await describeOne(store, sessions, row);
    return create(api.ContainSandboxResponseSchema, { ...(sandbox === undefined ? {} : { sandbox }), results });
  }

  async function responseOf(tables: Tables, id: SandboxId, results: api.ContainmentResult[]): Promise<api.ContainSandboxResponse> {
    const sandbox = await describeOne(tables, sessions, await tables.sandboxes.find(id));
    return create(api.ContainSandboxResponseSchema, { sandbox, results });
  }

  return {
    async containSandbox(request, { values, signal }) {
      const actions = actionsOf(request.actions);
      if (actions.length === 0) {
        throw new DroverError('invalid-argument', 'the request names no way to contain the sandbox', {
          hint: `name at least one of ${containmentActions.join(', ')}`,
        });
      }
      if (request.reason.length > maxContainReasonLength) {
        throw new DroverError('invalid-argument', `the reason has ${request.reason.length} characters`, {
          hint: `use at most ${maxContainReasonLength}`,
        });
      }
      const by = { by: callerOf(values).name, at: clock.now(), reason: request.reason };
      const stored = await once(store, values, methods.containSandbox, request, async (tables) => {
        const { id } = await findExisting(tables, request.sandbox);
        const results: api.ContainmentResult[] = [];
        for (const action of actions) results.push(resultOf(action, await contain(tables, id, action, actions, by)));
        return await responseOf(tables, id, results);
      });
      return await respond(stored, containProgress, signal);
    },

    async releaseSandbox(request, { values, signal }) {
      const stored = await once(store, values, methods.releaseSandbox, request, async (tables) => {
        const row = await findExisting(tables, request.sandbox);
        const named = actionsOf(request.actions);
        const inForce = containmentsOf(row);
        const results: api.ContainmentResult[] = [];
        for (const action of named.length === 0 ? inForce : named) {
          results.push(resultOf(action, inForce.includes(action) ? await release(tables, row.id, action) : notInForce));
        }
        return await responseOf(tables, row.id, results);
      });
      return await respond(stored, releaseProgress, signal);
    },
  };
}

/** @throws {DroverError} sandbox-not-found */
async function findExisting({ sandboxes }: Tables, reference: string): Promise<SandboxRow> {
  const row = await sandboxes.find(reference);
  if (row.deletedAt === undefined) return row;
  throw new DroverError('sandbox-not-found', `sandbox ${row.name} was deleted`, { hint: 'nothing of it remains to contain' });
}
