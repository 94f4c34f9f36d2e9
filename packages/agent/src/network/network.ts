import type { SandboxId } from '@drover/foundation';
import type { Policy } from '@drover/spec/policy';

export interface SandboxAddresses {
  /** The sandbox's address, IPv4, without prefix length. */
  readonly address: string;
  /** The host's address that the sandbox can reach: the egress proxy and the registration port. */
  readonly gatewayAddress: string;
  readonly proxyPort: number;
  /** The registration port (I-13). */
  readonly controlPort: number;
}

export interface NetworkAttachment extends SandboxAddresses {
  /** Path of the network namespace, as `ip netns` keeps it. */
  readonly namespacePath: string;
  /** The host's end. */
  readonly interface: string;
}

export interface AddressHolder {
  readonly id: SandboxId;
  /** The host's end. */
  readonly interface: string;
}

/**
 * The host's sandbox network (spec 5.4): for each sandbox a namespace, a veth pair and rules that let it reach the egress
 * proxy, the way to the control plane and nothing else, in force before anything runs in it.
 */
export interface Network {
  /**
   * Sets up the host's side (bridge-less veths, nftables table, pool), restores what the host lacks to reach the known sandboxes that
   * run, and removes leftovers of an earlier life.
   * @throws {DroverError} invalid-config when known sandboxes have addresses in another pool; nothing is changed then
   */
  start(known: ReadonlySet<SandboxId>): Promise<void>;
  /**
   * The sandbox's attachment, made if it has none: `reserved`, if that is given. The same id always gets the same attachment.
   * @throws {DroverError} no-room
   */
  acquire(id: SandboxId, reserved?: NetworkAttachment): Promise<NetworkAttachment>;
  /** Reserves an attachment for a standby; undefined when sandboxes need the remaining ones. */
  reserve(): Promise<NetworkAttachment | undefined>;
  /** Releases a reserved attachment that no sandbox acquired. Repeated: nothing. */
  unreserve(reserved: NetworkAttachment): Promise<void>;
  /** Removes the sandbox's network. Absent: nothing. */
  release(id: SandboxId): Promise<void>;
  /** Replaces what the sandbox may reach, in force when it resolves. */
  applyPolicy(id: SandboxId, policy: Policy): Promise<void>;
  /**
   * Cuts or restores the sandbox's network (I-4), for open connections too. A cut leaves init's port and the registration port. In force when it
   * resolves. @throws {DroverError} sandbox-not-found when it has no network
   */
  setCut(id: SandboxId, cut: boolean): Promise<void>;
  /**
   * Closes or opens the registration port (I-4), for open connections too. In force when it resolves.
   * @throws {DroverError} sandbox-not-found when it has no network
   */
  setRegistrationClosed(id: SandboxId, closed: boolean): Promise<void>;
  /** The sandbox with the address, and its interface; each interface sends from its own address only. Undefined: none. */
  holderOf(address: string): AddressHolder | undefined;
  close(): Promise<void>;
}
