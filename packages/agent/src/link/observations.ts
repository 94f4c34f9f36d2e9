import type { sandbox } from '@drover/protocol';

/** Observations that wait for the link: the newest of each sandbox (L-22 is level-triggered), so no more than the host has sandboxes. */
export class UnsentObservations {
  readonly #bySandbox = new Map<string, sandbox.SandboxObservation>();

  add(observation: sandbox.SandboxObservation): void {
    this.#bySandbox.set(observation.sandboxId, observation);
  }

  get size(): number {
    return this.#bySandbox.size;
  }

  /** Removes and returns all. */
  take(): readonly sandbox.SandboxObservation[] {
    const all = [...this.#bySandbox.values()];
    this.#bySandbox.clear();
    return all;
  }
}
