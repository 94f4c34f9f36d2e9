import { create } from '@bufbuild/protobuf';
import { hasCode, type SandboxId } from '@drover/foundation';
import { api } from '@drover/protocol';
import { runIsOver, type ContainmentAction, type ContainmentRecord } from '../../model/index.ts';
import { placeSandbox } from '../../placement/index.ts';
import type { Tables } from '../../store/index.ts';

/** The outcome of an action that is known when it is stored; undefined: its host decides. */
type Outcome = { readonly done: boolean; readonly message: string; readonly hint?: string } | undefined;
export const notInForce: Outcome = { done: true, message: 'it was not in force' };

export function resultOf(action: ContainmentAction, outcome: Outcome): api.ContainmentResult {
  return create(api.ContainmentResultSchema, { action, ...outcome });
}

export async function contain(
  tables: Tables,
  id: SandboxId,
  action: ContainmentAction,
  all: readonly ContainmentAction[],
  by: ContainmentRecord,
): Promise<Outcome> {
  const outcome = await apply(tables, id, action, all, by.by);
  // An action that was refused has no record.
  if (outcome?.done !== false) await tables.sandboxes.setContainment(id, action, by);
  return outcome;
}

async function apply(
  tables: Tables,
  id: SandboxId,
  action: ContainmentAction,
  all: readonly ContainmentAction[],
  by: string,
): Promise<Outcome> {
  switch (action) {
    case 'cut-network':
      await tables.sandboxes.setNetworkCut(id, true);
      return undefined;
    case 'pause':
      if (all.includes('kill')) return { done: true, message: 'it is killed, and stays stopped until the pause is released too' };
      return await pause(tables, id);
    case 'kill':
      return await allowed(async () => await tables.sandboxes.setDesired(id, 'stopped', { kill: true, cause: 'contained', by }));
    case 'revoke':
      await tables.identities.setRevoked(id, true);
      return undefined;
    default:
      return action satisfies never;
  }
}

/** Pauses a running sandbox. A sandbox that is not running is only kept from starting. */
async function pause(tables: Tables, id: SandboxId): Promise<Outcome> {
  try {
    await tables.sandboxes.setDesired(id, 'paused');
    return undefined;
  } catch (error) {
    if (!hasCode(error, 'sandbox-not-running')) return refusal(error);
    return { done: true, message: 'it is not running, and does not start until it is released' };
  }
}

export async function release(tables: Tables, id: SandboxId, action: ContainmentAction): Promise<Outcome> {
  // Before the desired state: a recorded containment refuses a start.
  const row = await tables.sandboxes.setContainment(id, action, undefined);
  switch (action) {
    case 'cut-network':
      await tables.sandboxes.setNetworkCut(id, false);
      return undefined;
    case 'pause':
      if (row.containment.kill !== undefined) return { done: true, message: 'it is killed too' };
      if (row.desired === 'stopped') return { done: true, message: 'it was stopped meanwhile' };
      if (runIsOver(row)) {
        // The desired state running would start it again.
        await tables.sandboxes.setDesired(id, 'stopped');
        return { done: true, message: 'it has ended meanwhile' };
      }
      return await allowed(async () => await placeSandbox(tables, await tables.sandboxes.setDesired(id, 'running')));
    case 'kill':
      if (row.containment.pause !== undefined) return { done: true, message: 'it stays stopped: a pause contains it too' };
      return await allowed(async () => {
        // The grace of the kill does not outlive it.
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

/** An action that the sandbox's state does not allow is reported, and does not prevent the other actions. */
async function allowed(change: () => Promise<unknown>): Promise<Outcome> {
  try {
    await change();
    return undefined;
  } catch (error) {
    return refusal(error);
  }
}

function refusal(error: unknown): Outcome {
  if (!hasCode(error, 'sandbox-not-running', 'failed-precondition')) throw error;
  return { done: false, message: error.message, hint: error.hint ?? '' };
}
