import { create } from '@bufbuild/protobuf';
import { DroverError, hasCode, type HostId } from '@drover/foundation';
import { link, sandbox } from '@drover/protocol';
import { killGraceMs } from '@drover/spec';
import { isObservation, type Hub, type Observation, type Operation } from '../hub/index.ts';
import type { SecretBox } from '../secrets/index.ts';
import { mayNotRun, type SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';
import { stepSubject, type CopyStep, type Step } from './step.ts';

export interface ExecuteContext {
  readonly store: Store;
  readonly hub: Hub;
  readonly secrets: SecretBox;
  readonly hostId: HostId;
  /** Aborts when the stream ends. It ends the wait, not the work on the host (L-21). No step has a deadline (L-23). */
  readonly signal: AbortSignal;
}

/**
 * Runs one step on the host. The store learns of the change from the host's observation, not from this result.
 * @returns the host's copy after the step; undefined: the host holds none
 * @throws {DroverError} the host's error, or host-unavailable
 */
export async function executeStep(step: Step, context: ExecuteContext): Promise<Observation | undefined> {
  const { store, hostId } = context;
  switch (step.kind) {
    case 'absent':
      await store.sandboxes.copyAbsent(step.row.id, hostId);
      return undefined;
    case 'destroy':
    case 'fence': {
      const { id, generation } = stepSubject(step);
      await call(context, {
        case: 'destroy',
        value: create(link.DestroySandboxSchema, { sandbox: { sandboxId: id, generation: BigInt(generation) } }),
      });
      // Releases the room of the stale copy, unless the sandbox is placed here again and needs that room.
      if (!(step.kind === 'fence' && step.placedHere)) await store.sandboxes.copyAbsent(id, hostId);
      return undefined;
    }
    default:
      return await changeCopy(step, context);
  }
}

async function changeCopy(step: CopyStep, context: ExecuteContext): Promise<Observation | undefined> {
  let result: link.CommandResult['value'];
  try {
    result = await call(context, await operation(step, context));
  } catch (error) {
    // The copy has disappeared: the next plan takes that into account.
    if (step.kind !== 'create' && hasCode(error, 'sandbox-not-found')) return undefined;
    throw error;
  }
  if (result.case === 'sandbox' && isObservation(result.value) && result.value.sandboxId === step.row.id) return result.value;
  // A stop of a sandbox that the host does not hold succeeds (L-19).
  if (result.case === undefined && step.kind === 'stop') return undefined;
  throw new DroverError('protocol-violation', `the host responded to ${step.kind} without the state of the sandbox`, {
    hint: 'check that the agent has the same version as the control plane',
  });
}

async function call(context: ExecuteContext, operation: Operation): Promise<link.CommandResult['value']> {
  // The hub sends on the host's newest stream: a loop whose own stream has ended must not send commands on its successor's (L-28).
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
      // I-4: a stop resumes a paused sandbox for its grace, so a contained one is killed.
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

/** Spec 2.7: the setup reaches init over the session; the host does not receive it. */
function hostSpec(spec: sandbox.SandboxSpec): sandbox.SandboxSpec {
  const { setup: _, ...rest } = spec;
  return create(sandbox.SandboxSpecSchema, rest);
}

/** secrets are decrypted for each command that carries them. @throws {DroverError} failed-precondition */
async function secretsOf(row: SandboxRow, { store, secrets }: ExecuteContext): Promise<{ name: string; value: Uint8Array<ArrayBuffer> }[]> {
  if (row.spec.secrets.length === 0) return [];
  const sealed = await store.sandboxes.secrets(row.id);
  return sealed.map(({ name, sealed: text }) => ({ name, value: secrets.unseal(row.id, name, text) }));
}

function ref(row: SandboxRow): { readonly sandboxId: string; readonly generation: bigint } {
  return { sandboxId: row.id, generation: BigInt(row.generation) };
}
