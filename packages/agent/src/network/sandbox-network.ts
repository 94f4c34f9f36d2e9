import { join } from 'node:path';
import { DroverError, KeyedExecutor, systemClock, type FileRecords, type Logger, type SandboxId } from '@drover/foundation';
import type { SandboxPolicy } from '@drover/gateway';
import { emptyPolicy, type Policy } from '@drover/spec/policy';
import pLimit from 'p-limit';
import { emptyNetworkDelayMs, networkCreatesAtOnce, networkOperationsPerSandbox, warmNetworkDelayMs, warmNetworks } from '../limits.ts';
import { addressSlot, defaultPool, planAddresses, slotAddress, slotInterface, type AddressPlan } from './addresses.ts';
import { setSlot, setUpHost, tearDownHost, type SlotSet } from './host-side.ts';
import { createNamespace, isJoinable, namespacePath, presentSlots, removeSlots, restoreHostEnds } from './namespaces.ts';
import type { AddressHolder, Network, NetworkAttachment } from './network.ts';
import { PolicyPublisher, type ApplyGateway } from './policy-publisher.ts';
import { networkRecords, type NetworkRecord } from './records.ts';

export interface SandboxNetworkOptions {
  /** The agent's; records are in `networks/`. */
  readonly stateDirectory: string;
  /** Addresses for this host's sandboxes, an IPv4 network. Default 10.213.0.0/16. */
  readonly pool?: string;
  /** Distinguishes this agent's interfaces, namespaces and rules from another's: 1 to 8 letters and digits, see `instanceTag`. */
  readonly instance: string;
  /** Puts a whole table in force at the gateway. */
  readonly applyGateway: ApplyGateway;
  /** Where the egress proxy listens on the gateway's address. */
  readonly proxyPort: number;
  /** The registration port, on the gateway's address. */
  readonly controlPort: number;
  /** Called when a sandbox has lost its address. */
  readonly onRelease?: (id: SandboxId) => void;
  readonly logger: Logger;
  /** Namespaces that are ready. Default 16. */
  readonly warm?: number;
}

/**
 * The network of a host's sandboxes, on Linux: see network.ts for what it promises, ruleset.ts for what enforces it.
 * The kernel is the source of truth for interfaces and namespaces, which are named after their slots; a record on disk assigns a slot to a sandbox.
 * Slots without a record are swept at start.
 */
export class SandboxNetwork implements Network {
  readonly #plan: AddressPlan;
  readonly #options: SandboxNetworkOptions;
  readonly #logger: Logger;
  readonly #disk: FileRecords<NetworkRecord>;
  readonly #records = new Map<SandboxId, NetworkRecord>();
  readonly #publisher: PolicyPublisher;
  readonly #serial = new KeyedExecutor<SandboxId>(networkOperationsPerSandbox);
  readonly #creating = pLimit(networkCreatesAtOnce);
  /** Free slots. Acquired from the front and released at the end, so that an address is reused as late as possible. */
  readonly #free: number[] = [];
  /** Slots with a namespace that is ready. */
  readonly #ready: number[] = [];
  /** Reserved slots, by the paths of their namespaces. */
  readonly #reserved = new Map<string, number>();
  /** Slots of released sandboxes whose address the gateway may still know. */
  readonly #quarantine = new Set<number>();
  /** When a sandbox last acquired a network. */
  #acquired = Number.NEGATIVE_INFINITY;
  #refilling: Promise<void> | undefined;
  readonly #life = new AbortController();
  #open = false;
  /** Whether `start` has begun to change the host. */
  #begun = false;

  /** @throws {DroverError} invalid-config */
  constructor(options: SandboxNetworkOptions) {
    this.#plan = planAddresses(options.instance, options.pool ?? defaultPool);
    this.#options = options;
    this.#logger = options.logger;
    this.#disk = networkRecords(join(options.stateDirectory, 'networks'), options.logger);
    this.#publisher = new PolicyPublisher(options.applyGateway, () => this.#policies());
  }

  /** The address that the egress proxy and the control listener listen on; there once `start` has begun to apply policies. */
  get gatewayAddress(): string {
    return this.#plan.gatewayAddress;
  }

  async start(known: ReadonlySet<SandboxId>): Promise<void> {
    if (this.#open) throw new DroverError('internal', 'the network is started already');
    const records = await this.#disk.load();
    const other = records.find((record) => known.has(record.id) && record.pool !== this.#plan.pool);
    if (other !== undefined) {
      throw new DroverError('invalid-config', `sandboxes of this host have addresses in ${other.pool}, not in ${this.#plan.pool}`, {
        hint: `start with --pool ${other.pool}, or remove the sandboxes first`,
      });
    }
    for (const record of records) {
      if (known.has(record.id)) this.#records.set(record.id, record);
      else await this.#disk.delete(record.id);
    }
    this.#begun = true;
    const owned = new Set([...this.#records.values()].map((r) => r.slot));
    const slotsWith = (set: SlotSet): readonly number[] => [...this.#records.values()].filter((r) => r[set]).map((r) => r.slot);
    await setUpHost(this.#plan, this.#options, { cut: slotsWith('cut'), unregistered: slotsWith('unregistered') });
    const present = await presentSlots(this.#plan);
    const swept = [...new Set([...present.interfaces, ...present.names])].filter((slot) => !owned.has(slot));
    await removeSlots(this.#plan, swept);
    const running = [...owned].filter((slot) => present.interfaces.has(slot));
    await restoreHostEnds(this.#plan, running).catch((error: unknown) => {
      this.#logger.error({ err: String(error) }, 'the way to a running sandbox could not be restored');
    });
    for (let slot = 0; slot < this.#plan.slots; slot++) if (!owned.has(slot)) this.#free.push(slot);
    this.#open = true;
    this.#logger.info({ adopted: owned.size, swept: swept.length, pool: this.#plan.pool }, 'sandbox network ready');
    // Safe: without the gateway nothing leaves the sandboxes. The next publication carries the whole table.
    await this.#publish().catch((error: unknown) => this.#logger.error({ err: String(error) }, 'the gateway has no policies yet'));
    this.#refill();
  }

  async acquire(id: SandboxId, reserved?: NetworkAttachment): Promise<NetworkAttachment> {
    return await this.#exclusively(id, async () => {
      const existing = this.#records.get(id);
      if (existing !== undefined) return await this.#restore(existing);
      const slot = this.#takeReserved(reserved) ?? this.#ready.shift() ?? (await this.#createCold());
      const record: NetworkRecord = { id, slot, pool: this.#plan.pool, policy: emptyPolicy, cut: false, unregistered: false };
      try {
        await this.#disk.put(record);
      } catch (error) {
        this.#ready.push(slot);
        throw DroverError.from(error);
      }
      this.#records.set(id, record);
      this.#acquired = performance.now();
      this.#refill();
      return this.#attachment(slot);
    });
  }

  async reserve(): Promise<NetworkAttachment | undefined> {
    if (!this.#open) throw new DroverError('unavailable', "the host's network is not ready");
    // Half of all addresses are left to sandboxes that use no standby.
    if (this.#records.size + this.#reserved.size + this.#quarantine.size >= this.#plan.slots / 2) return undefined;
    const slot = this.#ready.shift() ?? (await this.#createCold());
    const attachment = this.#attachment(slot);
    this.#reserved.set(attachment.namespacePath, slot);
    this.#refill();
    return attachment;
  }

  async unreserve(reserved: NetworkAttachment): Promise<void> {
    const slot = this.#takeReserved(reserved);
    if (slot === undefined) return;
    await removeSlots(this.#plan, [slot]);
    this.#free.push(slot);
  }

  async release(id: SandboxId): Promise<void> {
    await this.#exclusively(id, async () => {
      const record = this.#records.get(id);
      if (record === undefined) return;
      await removeSlots(this.#plan, [record.slot]);
      for (const set of ['cut', 'unregistered'] as const) if (record[set]) await setSlot(this.#plan, set, record.slot, false);
      await this.#disk.delete(id);
      this.#records.delete(id);
      this.#options.onRelease?.(id);
      // The next sandbox on this address must not inherit the policy: the slot is free once the gateway has a table without it.
      this.#quarantine.add(record.slot);
      await this.#publish().catch((error: unknown) => {
        this.#logger.warn({ sandbox: id, err: String(error) }, 'address withheld until the gateway has a new table');
      });
    });
  }

  async applyPolicy(id: SandboxId, policy: Policy): Promise<void> {
    await this.#exclusively(id, async () => {
      await this.#change(id, { policy });
      await this.#publish();
    });
  }

  async setCut(id: SandboxId, cut: boolean): Promise<void> {
    await this.#setMember(id, 'cut', cut);
  }

  async setRegistrationClosed(id: SandboxId, closed: boolean): Promise<void> {
    await this.#setMember(id, 'unregistered', closed);
  }

  async #setMember(id: SandboxId, set: SlotSet, member: boolean): Promise<void> {
    await this.#exclusively(id, async () => {
      const record = this.#record(id);
      if (!member && !record[set]) return;
      // A member in memory before the first try, and until the removal is complete: after a failure a repetition, or a release, completes it.
      if (member) this.#records.set(id, { ...record, [set]: true });
      await setSlot(this.#plan, set, record.slot, member);
      await this.#change(id, { [set]: member });
    });
  }

  holderOf(address: string): AddressHolder | undefined {
    const slot = addressSlot(this.#plan, address);
    if (slot === undefined) return undefined;
    for (const record of this.#records.values())
      if (record.slot === slot) return { id: record.id, interface: slotInterface(this.#plan, slot) };
    return undefined;
  }

  async close(): Promise<void> {
    this.#open = false;
    this.#life.abort();
    await this.#refilling;
    await removeSlots(this.#plan, [...this.#ready.splice(0), ...this.#reserved.values()]);
    this.#reserved.clear();
    // Sandboxes that run on keep their rules; without sandboxes nothing stays. A refused start leaves the host as it was.
    if (this.#begun && this.#records.size === 0) await tearDownHost(this.#plan);
  }

  async #exclusively<T>(id: SandboxId, task: () => Promise<T>): Promise<T> {
    if (!this.#open) throw new DroverError('unavailable', "the host's network is not ready");
    return await this.#serial.run(id, task);
  }

  #takeReserved(attachment: NetworkAttachment | undefined): number | undefined {
    const path = attachment?.namespacePath ?? '';
    const slot = this.#reserved.get(path);
    this.#reserved.delete(path);
    return slot;
  }

  #record(id: SandboxId): NetworkRecord {
    const record = this.#records.get(id);
    if (record === undefined) throw new DroverError('sandbox-not-found', `sandbox ${id} has no network on this host`);
    return record;
  }

  async #change(id: SandboxId, change: Partial<Pick<NetworkRecord, 'policy' | SlotSet>>): Promise<void> {
    const record = { ...this.#record(id), ...change };
    await this.#disk.put(record);
    this.#records.set(id, record);
  }

  #attachment(slot: number): NetworkAttachment {
    return {
      namespacePath: namespacePath(this.#plan, slot),
      address: slotAddress(this.#plan, slot),
      gatewayAddress: this.#plan.gatewayAddress,
      proxyPort: this.#options.proxyPort,
      controlPort: this.#options.controlPort,
      interface: slotInterface(this.#plan, slot),
    };
  }

  /** After a reboot of the host a sandbox's slot is made again. */
  async #restore(record: NetworkRecord): Promise<NetworkAttachment> {
    const { slot } = record;
    const present = await presentSlots(this.#plan);
    if (!present.interfaces.has(slot) || !(await isJoinable(this.#plan, slot))) {
      await removeSlots(this.#plan, [slot]);
      await this.#creating(() => createNamespace(this.#plan, slot));
    } else {
      await restoreHostEnds(this.#plan, [slot]);
    }
    return this.#attachment(slot);
  }

  async #createCold(): Promise<number> {
    const slot = this.#free.shift();
    if (slot === undefined) {
      throw new DroverError('no-room', `all ${this.#plan.slots} sandbox addresses of this host are in use`, {
        hint: 'remove sandboxes that are done, or give the agent a larger --pool',
      });
    }
    try {
      await this.#creating(() => createNamespace(this.#plan, slot));
      return slot;
    } catch (error) {
      this.#free.push(slot);
      throw error;
    }
  }

  #refill(): void {
    this.#refilling ??= this.#fill().finally(() => {
      this.#refilling = undefined;
    });
  }

  async #fill(): Promise<void> {
    const wanted = this.#options.warm ?? warmNetworks;
    try {
      while (this.#open && this.#ready.length < wanted && this.#free.length > 0) {
        // While sandboxes are being made, only when they lack it.
        const left = this.#acquired + (this.#ready.length > 0 ? warmNetworkDelayMs : emptyNetworkDelayMs) - performance.now();
        if (left > 0) await systemClock.sleep(left, this.#life.signal);
        else this.#ready.push(await this.#createCold());
      }
    } catch (error) {
      if (this.#life.signal.aborted) return;
      // The next create tries again and reports the error.
      this.#logger.warn({ err: String(error) }, 'no network could be made in advance');
    }
  }

  #policies(): readonly SandboxPolicy[] {
    return [...this.#records.values()].map((r) => ({ sandboxId: r.id, address: slotAddress(this.#plan, r.slot), policy: r.policy }));
  }

  async #publish(): Promise<void> {
    const forgotten = [...this.#quarantine];
    await this.#publisher.publish();
    for (const slot of forgotten) if (this.#quarantine.delete(slot)) this.#free.push(slot);
  }
}
