import type { MessageInitShape } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import type { api } from '@drover/protocol';

/** What contains a sandbox (I-4): each of them works on a session that is not trusted, and without one. */
export const containmentActions = ['cut-network', 'pause', 'kill', 'revoke'] as const;
export type ContainmentAction = (typeof containmentActions)[number];

export interface ReleaseOptions {
  /** Made up when absent; give one to repeat the call over a restart of your own program (L-20). */
  readonly idempotencyKey?: string;
  readonly signal?: AbortSignal;
}

export interface ContainOptions extends ReleaseOptions {
  /** Shown to everyone whom the containment stops. At most 500 characters. */
  readonly reason?: string;
}

/** The actions that are in force, or on their way. */
export function actionsOf(containment: api.Containment | undefined): readonly ContainmentAction[] {
  if (containment === undefined) return [];
  const { networkCut, paused, killed, revoked } = containment;
  const inForce: Readonly<Record<ContainmentAction, boolean>> = { 'cut-network': networkCut, pause: paused, kill: killed, revoke: revoked };
  return containmentActions.filter((action) => inForce[action]);
}

export function containmentOf(actions: readonly ContainmentAction[]): MessageInitShape<typeof api.ContainmentSchema> {
  return {
    networkCut: actions.includes('cut-network'),
    paused: actions.includes('pause'),
    killed: actions.includes('kill'),
    revoked: actions.includes('revoke'),
  };
}

/** @throws {DroverError} invalid-argument when there is none */
export function requireActions(actions: readonly ContainmentAction[]): void {
  if (actions.length > 0) return;
  throw new DroverError('invalid-argument', 'nothing says how to contain the sandbox', {
    hint: `name at least one of ${containmentActions.join(', ')}`,
  });
}
