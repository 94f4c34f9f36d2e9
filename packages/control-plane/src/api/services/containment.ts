import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { DroverError, hasCode, isSandboxId, Notifier, type SandboxId } from '@drover/foundation';
import { api } from '@drover/protocol';
import { containWaitMs, maxContainReasonLength } from '../../limits.ts';
import { placeSandbox } from '../../placement/index.ts';
import {
  containmentActions,
  containmentsOf,
  runIsOver,
  type ContainmentAction,
  type ContainmentRecord,
  type SandboxRow,
} from '../../model/index.ts';
import type { Tables } from '../../store/index.ts';
import { callerOf, type ApiContext, once } from '../edge/index.ts';
import { actionsOf, containProgress, releaseProgress } from './containment-progress.ts';
import { describeOne } from '../convert/index.ts';

type Methods = Pick<ServiceImpl<typeof api.SandboxService>, 'containSandbox' | 'releaseSandbox'>;
const methods = api.SandboxService.method;

/**
 * Containment (I-4): what is wanted is stored in one transaction, and needs neither a session nor one that is trusted; then the answer
 * waits, within bounds, for the host to have done it. What has a message in the stored answer was settled there and then. What a
 * revocation means for the session follows from its event (`Registry.onEvicted`).
 */
export function containmentMethods(context: ApiContext): Methods {
  const { store, sessions } = context;

  async function answer(
    stored: api.ContainSandboxResponse,
    progressOf: typeof containProgress,
    signal: AbortSignal,
  ): Promise<api.ContainSandboxResponse> {
    const id = stored.sandbox?.id ?? '';
    if (!isSandboxId(id)) return stored;
    const { row, results } = await settle(id, stored.results, progressOf, signal);
    const sandbox = row === undefined ? stored.sandbox : await describeOne(store, sessions, row);
    return create(api.ContainSandboxResponseSchema, { ...(sandbox === undefined ? {} : { sandbox }), results });
  }

  /** Until nothing more is to be expected soon, `containWaitMs` at most. */
  async function settle(
    id: SandboxId,
    stored: readonly api.ContainmentResult[],
    progressOf: typeof containProgress,
    signal: AbortSignal,
  ): Promise<{ readonly row: SandboxRow | undefined; readonly results: api.ContainmentResult[] }> {
    const { clock } = context;
    const until = clock.now() + containWaitMs;
    const changed = new Notifier(clock);
    const off = context.feed.on(id, changed.notify);
    let offHost: (() => void) | undefined;
    try {
      for (;;) {
        const row = await store.sandboxes.get(id);
        const hostId = row?.hostId;
        // Before it is looked at: a host that goes away is not waited for.
        offHost?.();
        offHost = hostId === undefined ? undefined : context.feed.on(hostId, changed.notify);
        const host = hostId === undefined ? undefined : await store.hosts.get(hostId);
        let waits = false;
        const results = stored.map((result) => {
          if (result.message !== '') return result;
          if (row === undefined) return create(api.ContainmentResultSchema, { ...result, message: 'the sandbox is gone' });
          const progress = progressOf(result.action as ContainmentAction, row, host);
          waits ||= progress.waits;
          return create(api.ContainmentResultSchema, { action: result.action, done: progress.done, message: progress.message });
        });
        const left = until - clock.now();
        if (!waits || left <= 0) return { row, results };
        await changed.wait(signal, left);
      }
    } finally {
      off();
      offHost?.();
    }
  }

  return {
    async containSandbox(request, { values, signal }) {
      const actions = actionsOf(request.actions);
      if (actions.length === 0) {
        throw new DroverError('invalid-argument', 'the request names nothing that is to contain the sandbox', {
          hint: `name at least one of ${containmentActions.join(', ')}`,
        });
      }
      if (request.reason.length > maxContainReasonLength) {
        throw new DroverError('invalid-argument', `the reason has ${request.reason.length} characters`, {
          hint: `use at most ${maxContainReasonLength}`,
        });
      }
      const by = { by: callerOf(values).name, at: context.clock.now(), reason: request.reason };
      const stored = await once(store, values, methods.containSandbox, request, async (tables) => {
        const { id } = await findKept(tables, request.sandbox);
        const results: api.ContainmentResult[] = [];
        for (const action of actions) results.push(resultOf(action, await contain(tables, id, action, actions, by)));
        return create(api.ContainSandboxResponseSchema, { sandbox: await current(tables, id), results });
      });
      return await answer(stored, containProgress, signal);
    },

    async releaseSandbox(request, { values, signal }) {
      const stored = await once(store, values, methods.releaseSandbox, request, async (tables) => {
        const row = await findKept(tables, request.sandbox);
        const named = actionsOf(request.actions);
        const results: api.ContainmentResult[] = [];
        const inForce = containmentsOf(row);
        for (const action of named.length === 0 ? inForce : named) {
          results.push(resultOf(action, inForce.includes(action) ? await release(tables, row.id, action) : wasNot));
        }
        return create(api.ContainSandboxResponseSchema, { sandbox: await current(tables, row.id), results });
      });
      return await answer(stored, releaseProgress, signal);
    },
  };

  async function current(tables: Tables, id: SandboxId): Promise<api.Sandbox> {
    return await describeOne(tables, sessions, await tables.sandboxes.find(id));
  }
}

/** What is known of an action as it is stored; undefined: that shows later. */
type Settled = { readonly done: boolean; readonly message: string; readonly hint?: string } | undefined;
const wasNot: Settled = { done: true, message: 'it was not in force' };

function resultOf(action: ContainmentAction, settled: Settled): api.ContainmentResult {
  return create(api.ContainmentResultSchema, { action, ...settled });
}

async function contain(
  tables: Tables,
  id: SandboxId,
  action: ContainmentAction,
  all: readonly ContainmentAction[],
  by: ContainmentRecord,
): Promise<Settled> {
  if (action === 'pause' && all.includes('kill')) return { done: true, message: 'it is killed, which is more' };
  const settled = await apply(tables, id, action, by.by);
  // Who did it is recorded of what is in force only.
  if (settled === undefined) await tables.sandboxes.setContainment(id, action, by);
  return settled;
}

async function apply(tables: Tables, id: SandboxId, action: ContainmentAction, by: string): Promise<Settled> {
  switch (action) {
    case 'cut-network':
      await tables.sandboxes.setNetworkCut(id, true);
      return undefined;
    case 'pause':
      return await wanted(async () => await tables.sandboxes.setDesired(id, 'paused'));
    case 'kill':
      return await wanted(async () => await tables.sandboxes.setDesired(id, 'stopped', { kill: true, cause: 'contained', by }));
    case 'revoke':
      await tables.identities.setRevoked(id, true);
      return undefined;
    default:
      return action satisfies never;
  }
}

async function release(tables: Tables, id: SandboxId, action: ContainmentAction): Promise<Settled> {
  // First: what it keeps from running is to run.
  const row = await tables.sandboxes.setContainment(id, action, undefined);
  switch (action) {
    case 'cut-network':
      await tables.sandboxes.setNetworkCut(id, false);
      return undefined;
    case 'pause':
      if (row.containment.kill !== undefined) return { done: true, message: 'it is killed too' };
      if (row.desired === 'stopped') return { done: true, message: 'it was stopped meanwhile' };
      if (runIsOver(row)) {
        // To want it running would be to start it again.
        await tables.sandboxes.setDesired(id, 'stopped');
        return { done: true, message: 'it has ended meanwhile' };
      }
      return await wanted(async () => await placeSandbox(tables, await tables.sandboxes.setDesired(id, 'running')));
    case 'kill':
      if (row.containment.pause !== undefined) return { done: true, message: 'it stays stopped: a pause contains it too' };
      return await wanted(async () => {
        // The grace of the kill goes with it.
        const asked = await tables.sandboxes.setDesired(id, 'running', { graceMs: row.spec.stopGraceMs });
        await placeSandbox(tables, asked);
      });
    case 'revoke':
      await tables.identities.setRevoked(id, false);
      return undefined;
    default:
      return action satisfies never;
  }
}

/** A wish that the sandbox's state does not allow is said to be so, and keeps no other action from being done. */
async function wanted(wish: () => Promise<unknown>): Promise<Settled> {
  try {
    await wish();
    return undefined;
  } catch (error) {
    if (hasCode(error, 'sandbox-not-running', 'failed-precondition'))
      return { done: false, message: error.message, hint: error.hint ?? '' };
    throw error;
  }
}

/** @throws {DroverError} sandbox-not-found */
async function findKept({ sandboxes }: Tables, reference: string): Promise<SandboxRow> {
  const row = await sandboxes.find(reference);
  if (row.deletedAt === undefined) return row;
  throw new DroverError('sandbox-not-found', `sandbox ${row.name} was deleted`, { hint: 'nothing of it is left to contain' });
}
