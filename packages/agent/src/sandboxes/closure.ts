import type { SandboxId } from '@drover/foundation';
import type { Backend } from '../backends/index.ts';
import type { NetworkClosure, SandboxCommand } from './sandboxes.ts';

/** The newest request for a sandbox's network: it counts from its arrival, not from its place in the queue (I-4). */
export interface RequestedClosure extends NetworkClosure {
  readonly generation: number;
}

/** An older request changes nothing. */
export function newerClosure(current: RequestedClosure, command: SandboxCommand & NetworkClosure): RequestedClosure {
  return command.generation >= current.generation ? { ...closureOf(command), generation: command.generation } : current;
}

export function closureOf({ networkCut, registrationClosed }: NetworkClosure): NetworkClosure {
  return { networkCut, registrationClosed };
}

export function isSameClosure(a: NetworkClosure, b: NetworkClosure): boolean {
  return a.networkCut === b.networkCut && a.registrationClosed === b.registrationClosed;
}

export async function setClosure(backend: Backend, id: SandboxId, { networkCut, registrationClosed }: NetworkClosure): Promise<void> {
  // A cut comes first: a failure of the rest must not leave the network open.
  if (networkCut) await backend.setCut(id, true);
  await backend.setRegistrationClosed(id, registrationClosed);
  if (!networkCut) await backend.setCut(id, false);
}
