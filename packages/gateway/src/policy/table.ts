import { isDeepStrictEqual } from 'node:util';
import { DroverError } from '@drover/foundation';
import { parseAddress, type Policy } from '@drover/spec/policy';
import { limits } from '../limits.ts';

/** The policy of one sandbox. */
export interface SandboxPolicy {
  readonly sandboxId: string;
  /** The sandbox's address, which it cannot forge. */
  readonly address: string;
  readonly policy: Policy;
}

/** A table of policies, or a change of the one of version `base`. */
export interface TableUpdate {
  /** Higher than that of the table in force. */
  readonly version: bigint;
  /** Undefined: `policies` is the whole table. */
  readonly base: bigint | undefined;
  readonly policies: readonly SandboxPolicy[];
  /** Addresses that a changed table has no more. */
  readonly removed: readonly string[];
}

/** The policies in force, by the client's address. An update takes effect as a whole or not at all. */
export class PolicyTable {
  #version = 0n;
  #policies: ReadonlyMap<string, SandboxPolicy> = new Map();
  #latest: TableUpdate | undefined;
  readonly #listeners = new Set<() => void>();

  get version(): bigint {
    return this.#version;
  }

  get size(): number {
    return this.#policies.size;
  }

  /** The policy of a client, by its address as the kernel reports it; undefined: an unknown client, which may reach nothing. */
  get(address: string): SandboxPolicy | undefined {
    return this.#policies.get(address);
  }

  /** The whole table in force, for a process that is to continue with it. */
  snapshot(): TableUpdate {
    return { version: this.#version, base: undefined, policies: [...this.#policies.values()], removed: [] };
  }

  /**
   * Puts an update in force. The same one again changes nothing: its response was lost.
   * @throws {DroverError} conflict for a version that is not newer, or a change of a table that is not in force; invalid-argument,
   *   too-large for a table that cannot be. The old table stays in force.
   */
  apply(update: TableUpdate): void {
    const { version, base, policies, removed } = update;
    if (version === this.#version && isDeepStrictEqual(update, this.#latest)) return;
    if (version <= this.#version || (base !== undefined && base !== this.#version)) {
      throw new DroverError('conflict', `policy table ${version} does not follow ${this.#version}, which is in force`, {
        hint: 'ask for the version in force and apply a higher one',
      });
    }
    const next = new Map(base === undefined ? [] : this.#policies);
    for (const address of removed) next.delete(parseAddress(address).toString());
    const seen = new Set<string>();
    for (const policy of policies) {
      const address = parseAddress(policy.address).toString();
      if (seen.has(address)) throw new DroverError('invalid-argument', `two policies for the address ${address}`);
      seen.add(address);
      next.set(address, policy);
    }
    if (next.size > limits.sandboxes) {
      throw new DroverError('too-large', `${next.size} sandboxes in one policy table; the most is ${limits.sandboxes}`);
    }
    this.#policies = next;
    this.#version = version;
    this.#latest = update;
    for (const listener of this.#listeners) listener();
  }

  /** Calls `listener` after each change, before `apply` returns. Returns the function that ends this. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
