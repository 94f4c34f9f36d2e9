import { DroverError } from '@drover/foundation';
import { limits } from '../limits.ts';
import { parseAddress } from './host.ts';
import { compilePolicy, type Policy } from './policy.ts';

/** What the agent says of one sandbox. */
export interface SandboxPolicy {
  readonly sandboxId: string;
  /** The sandbox's address, which it cannot forge. */
  readonly address: string;
  readonly allow: readonly string[];
}

/**
 * The policies in force, by the client's address. Replaced as a whole or not at all; whoever asks sees one table or the next,
 * never a mixture.
 */
export class PolicyTable {
  #version = 0n;
  #policies: ReadonlyMap<string, Policy> = new Map();
  #fingerprint = '';
  readonly #listeners = new Set<() => void>();

  get version(): bigint {
    return this.#version;
  }

  get size(): number {
    return this.#policies.size;
  }

  /** The policy of a client by its address as the kernel gives it; undefined: a stranger, who may reach nothing. */
  get(address: string): Policy | undefined {
    return this.#policies.get(address);
  }

  /**
   * Puts a new table in force. The same version with the same content again changes nothing (an answer was lost).
   * @throws {DroverError} conflict for a version that is not newer; invalid-argument, too-large for a table that cannot be; the old one stays.
   */
  replace(version: bigint, policies: readonly SandboxPolicy[]): void {
    const fingerprint = JSON.stringify(policies);
    if (version === this.#version && fingerprint === this.#fingerprint) return;
    if (version <= this.#version) {
      throw new DroverError('conflict', `policy table ${version} is not newer than ${this.#version}, which is in force`, {
        hint: 'ask for the version in force and apply a higher one',
      });
    }
    if (policies.length > limits.sandboxes) {
      throw new DroverError('too-large', `${policies.length} sandboxes in one policy table; the most is ${limits.sandboxes}`);
    }
    const next = new Map<string, Policy>();
    for (const policy of policies) {
      const address = parseAddress(policy.address).toString();
      if (next.has(address)) throw new DroverError('invalid-argument', `two policies for the address ${address}`);
      next.set(address, compilePolicy(policy.sandboxId, policy.allow, version));
    }
    this.#policies = next;
    this.#version = version;
    this.#fingerprint = fingerprint;
    for (const listener of this.#listeners) listener();
  }

  /** Calls `listener` after each change, before `replace` returns. Gives the way to stop. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
