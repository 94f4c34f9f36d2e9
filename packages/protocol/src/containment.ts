import type { MessageInitShape } from '@bufbuild/protobuf';
import type { Containment, ContainmentSchema } from './generated/drover/api/v1/api_pb.ts';

/** The field of a Containment for each action. */
const fields = { 'cut-network': 'networkCut', pause: 'paused', kill: 'killed', revoke: 'revoked' } as const;

/** A way to contain a sandbox (I-4). No action needs or trusts a session. */
export type ContainmentAction = keyof typeof fields;

/** The actions, in the order in which they are applied. */
export const containmentActions = Object.keys(fields) as readonly ContainmentAction[];

/** The actions that a message names. */
export function actionsOf(containment: Containment | undefined): readonly ContainmentAction[] {
  return containmentActions.filter((action) => containment?.[fields[action]] === true);
}

/** The message that names `actions`. */
export function containmentOf(actions: readonly ContainmentAction[]): MessageInitShape<typeof ContainmentSchema> {
  return Object.fromEntries(actions.map((action) => [fields[action], true]));
}
