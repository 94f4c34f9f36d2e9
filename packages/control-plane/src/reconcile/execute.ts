import { create } from '@bufbuild/protobuf';
import { DroverError, hasCode, type HostId, type SandboxId } from '@drover/foundation';
import { link, sandbox } from '@drover/protocol';
import { killGraceMs } from '@drover/spec';
import type { Hub, Operation } from '../hub/index.ts';
import type { SecretBox } from '../secrets/index.ts';
import { mayNotRun, type SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';
import type { CopyStep, Step } from './plan.ts';

/** What a step did to the host's copy. */
export type Outcome = { readonly kind: 'seen'; readonly copy: sandbox.SandboxObservation } | { readonly kind: 'absent' };

export interface ExecuteContext {
  readonly store: Store;
  readonly hub: Hub;
  readonly secrets: SecretBox;
  readonly hostId: HostId;
  readonly epoch: number;
  /** The link's: it ends the waiting, not the work on the host (L-21). No step has a deadline (L-23). */
  readonly signal: AbortSignal;
}

/** Which sandbox a step is about. */
export function stepSubject(step: Step): { readonly id: SandboxId; readonly generation: number } {
  return step.kind === 'fence' ? step : { id: step.row.id, generation: step.row.generation };
}

/**
 * Runs one step on the host, and writes what came of it.
 * @throws {DroverError} what the host answered, or host-unavailable
 */
export async function executeStep(step: Step, context: ExecuteContext): Promise<Outcome> {
  const { store, hostId } = context;
  switch (step.kind) {
    case 'gone':
      await store.sandboxes.gone(step.row.id, hostId);
      return { kind: 'absent' };
    case 'destroy':
      await call(context, { case: 'destroy', value: create(link.DestroySandboxSchema, { sandbox: ref(step.row) }) });
      await store.sandboxes.gone(step.row.id, hostId);
      return { kind: 'absent' };
    case 'fence':
      await call(context, {
        case: 'destroy',
        value: create(link.DestroySandboxSchema, { sandbox: { sandboxId: step.id, generation: BigInt(step.generation) } }),
      });
      // Frees what the stray copy counted for; the sandbox itself, where it is placed here anew, is not gone.
      if (!step.placedHere) await store.sandboxes.gone(step.id, hostId);
      return { kind: 'absent' };
    default:
      return await changeCopy(step, context);
  }
}

async function changeCopy(step: CopyStep, context: ExecuteContext): Promise<Outcome> {
  let result: link.CommandResult['value'];
  try {
    result = await call(context, await operation(step, context));
  } catch (error) {
    // The copy that was seen is not there any more: what follows from that is planned anew.
    if (step.kind !== 'create' && hasCode(error, 'sandbox-not-found')) return { kind: 'absent' };
    throw error;
  }
  if (result.case === 'sandbox') {
    await context.store.sandboxes.observe(context.hostId, context.epoch, [result.value]);
    return { kind: 'seen', copy: result.value };
  }
  // The stop of one that is gone succeeds (L-19).
  if (step.kind === 'stop') return { kind: 'absent' };
  throw new DroverError('protocol-violation', `the host answered ${step.kind} without saying what it sees`, {
    hint: 'see that the agent has the same version as the control plane',
  });
}

async function call(context: ExecuteContext, operation: Operation): Promise<link.CommandResult['value']> {
  // The hub sends on the host's newest stream: a loop whose own has ended must not command over its successor's (L-28).
  context.signal.throwIfAborted();
  return await context.hub.call(context.hostId, operation, { signal: context.signal });
}

async function operation(step: CopyStep, context: ExecuteContext): Promise<Operation> {
  const { row } = step;
  const target = { sandbox: ref(row) };
  switch (step.kind) {
    case 'create':
      return {
        case: 'create',
        value: create(link.CreateSandboxSchema, {
          ...target,
          project: row.project,
          name: row.name,
          spec: hostSpec(row.spec),
          secrets: await secretsOf(row, context),
          networkCut: row.networkCut,
          registrationClosed: row.revokedAt !== undefined,
        }),
      };
    case 'start':
      return {
        case: 'start',
        value: create(link.StartSandboxSchema, {
          ...target,
          secrets: await secretsOf(row, context),
          networkCut: row.networkCut,
          registrationClosed: row.revokedAt !== undefined,
        }),
      };
    case 'stop':
      // I-4: a grace would let a sandbox that is contained by a pause run again.
      return {
        case: 'stop',
        value: create(link.StopSandboxSchema, { ...target, graceMs: mayNotRun(row) ? killGraceMs : row.stopGraceMs }),
      };
    case 'pause':
      return { case: 'pause', value: create(link.PauseSandboxSchema, target) };
    case 'resume':
      return { case: 'resume', value: create(link.ResumeSandboxSchema, target) };
    case 'cut':
      return {
        case: 'setNetworkCut',
        value: create(link.SetNetworkCutSchema, { ...target, cut: row.networkCut, registrationClosed: row.revokedAt !== undefined }),
      };
    default:
      return step.kind satisfies never;
  }
}

/** What a sandbox is prepared with is told to its init alone, by the session (spec 2.7): no host needs to know, or to keep it. */
function hostSpec(spec: sandbox.SandboxSpec): sandbox.SandboxSpec {
  const { setup: _, ...rest } = spec;
  return create(sandbox.SandboxSpecSchema, rest);
}

/** they are decrypted for the command that carries them, each start anew. @throws {DroverError} failed-precondition */
async function secretsOf(row: SandboxRow, { store, secrets }: ExecuteContext): Promise<{ name: string; value: Uint8Array<ArrayBuffer> }[]> {
  if (row.spec.secrets.length === 0) return [];
  const sealed = await store.sandboxes.secrets(row.id);
  return sealed.map(({ name, sealed: text }) => ({ name, value: secrets.unseal(row.id, name, text) }));
}

function ref(row: SandboxRow): { readonly sandboxId: string; readonly generation: bigint } {
  return { sandboxId: row.id, generation: BigInt(row.generation) };
}
