import type { sandbox } from '@drover/protocol';

/**
 * What the control plane has not been told yet: the newest observation of each sandbox (L-22 is about levels), so it never
 * holds more than the host has sandboxes.
 */
export class UnsentObservations {
  readonly #bySandbox = new Map<string, sandbox.SandboxObservation>();

  add(observation: sandbox.SandboxObservation): void {
    this.#bySandbox.set(observation.sandboxId, observation);
  }

  get size(): number {
    return this.#bySandbox.size;
  }

  /** Everything that waits; afterwards nothing does. */
  take(): readonly sandbox.SandboxObservation[] {
    const all = [...this.#bySandbox.values()];
    this.#bySandbox.clear();
    return all;
  }
}
