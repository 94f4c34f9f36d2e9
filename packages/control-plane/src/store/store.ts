import type { HostId, Name, Project, SandboxId } from '@drover/foundation';
import type { link, sandbox } from '@drover/protocol';
import type { EventDraft, StoredEvent } from '../events/index.ts';
import type {
  Bearer,
  ContainmentAction,
  ContainmentRecord,
  DesiredState,
  EndReason,
  EvictionCause,
  HostRow,
  Identity,
  Room,
  SandboxRow,
  SealedSecret,
  StopCause,
  VolumeRow,
} from '../model/index.ts';
import type { SandboxView } from '../worldview/index.ts';

/**
 * What the control plane keeps. Every method is one transaction; a method that changes state takes or makes
 * the events of that change and writes them in the same transaction (design: Boundaries).
 * The same queries run on SQLite and PostgreSQL. Times are milliseconds since the epoch.
 *
 * Desired columns are written by the API and placement, observed ones by the hub, never the other way round (L-22).
 */
export interface Store extends Tables {
  readonly kind: 'sqlite' | 'postgres';
  readonly idempotency: IdempotencyStore;
  /**
   * Runs `work` as one transaction of all that it calls on the tables that it is given. It must call nothing else that waits, this
   * store least of all: SQLite has one connection, and `work` holds it. It may be run again when the database asks for that.
   */
  together<T>(work: (store: Tables) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

/** The tables, each call a transaction of its own or, within `together` and `once`, a part of that one. */
export interface Tables {
  readonly hosts: HostStore;
  readonly sandboxes: SandboxStore;
  readonly tokens: TokenStore;
  readonly events: EventStore;
  readonly identities: IdentityStore;
  readonly views: ViewStore;
  readonly volumes: VolumeStore;
}

export interface DesiredOptions {
  /** Between SIGTERM and SIGKILL, of a stop. Milliseconds; 0 is the host's own. */
  readonly graceMs?: number;
  /** The stop has the least grace that there is (I-4). */
  readonly kill?: boolean;
  /** Why it is to end, when it is; default: `asked`, or `removed` for a removal. */
  readonly cause?: StopCause;
  /** Who asked: the name of an API token; empty: no person. */
  readonly by?: string;
  /** Asked of the row as it is when it would be changed; false changes nothing. */
  readonly when?: (row: SandboxRow) => boolean;
}

export interface HostStore {
  /** Inserts or updates the row in place (L-7); a removed host is refused. @throws {DroverError} host-removed */
  join(host: {
    readonly id: HostId;
    readonly name: string;
    readonly labels: Readonly<Record<string, string>>;
    readonly certificateExpiresAt: number;
  }): Promise<HostRow>;
  /**
   * One stream's Register (L-8, L-11): raises the epoch, marks connected, updates what the host says of itself, applies the
   * reported observations, clears `lostSince` of what is running, and rebuilds `reserved` from the sandboxes that the store
   * has placed on the host and those it reports, each once. Gives the new epoch.
   * @throws {DroverError} host-removed, host-not-found
   */
  register(registration: link.Register, owner: string): Promise<{ readonly host: HostRow; readonly epoch: number }>;
  /** Marks down if `epoch` is still the newest (L-11); says whether it was. */
  markDown(id: HostId, epoch: number, reason: string): Promise<boolean>;
  /** Batched liveness (L-9); rows whose epoch is newer are left alone; a host that was marked down by silence is ready again. */
  heartbeats(
    beats: readonly {
      readonly id: HostId;
      readonly epoch: number;
      readonly at: number;
      readonly loadMilli: number;
      readonly memoryAvailableBytes: number;
      readonly diskAvailableBytes: number;
    }[],
  ): Promise<void>;
  /** At the start of a replica: hosts that it owned in an earlier life have no stream any more. */
  markOwnedDown(owner: string): Promise<number>;
  get(id: HostId): Promise<HostRow | undefined>;
  /** By id or by name; names of removed hosts do not count. @throws {DroverError} host-not-found, invalid-argument (an ambiguous name) */
  find(idOrName: string): Promise<HostRow>;
  list(options?: { readonly includeRemoved?: boolean }): Promise<readonly HostRow[]>;
  setScheduling(id: HostId, scheduling: HostRow['scheduling']): Promise<HostRow>;
  /** Revokes (L-4): refused with host-not-empty while it holds sandboxes, unless forced; forced, they become lost at once. */
  remove(id: HostId, options: { readonly force: boolean }): Promise<HostRow>;
  certificateRenewed(id: HostId, expiresAt: number): Promise<void>;
}

export interface SandboxStore {
  /**
   * Places it on a host as `place` does or, if the host no longer has room, on none.
   * @param place the host, or why none can take it now; absent: placement decides later
   * @throws {DroverError} name-taken
   */
  create(draft: SandboxDraft, place?: HostId | { readonly unschedulable: string }): Promise<SandboxRow>;
  /** Reserves room on the host and sets host_id in one conditional update (L-24); false when the room is gone or the row is placed or deleted. */
  place(id: SandboxId, hostId: HostId): Promise<boolean>;
  setPending(id: SandboxId, reason: string, message: string): Promise<void>;
  /**
   * Takes the sandbox off its host (drain); the host's copy is fenced by the next reconcile. Only while the host still is `from`, and no pause
   * or kill contains the sandbox (I-4).
   */
  unplace(id: SandboxId, from: HostId, reason: string): Promise<boolean>;
  /**
   * Changes what is wanted; the same state again changes nothing, but for a stop that has not ended: a kill, or a shorter grace, takes
   * the place of the one under way. Deleting a sandbox that is on no host deletes it.
   * @throws {DroverError} failed-precondition for `running` while a pause or a kill contains it (I-4)
   */
  setDesired(id: SandboxId, desired: DesiredState, options?: DesiredOptions): Promise<SandboxRow>;
  /** Applies what a host saw; older sequences, and hosts that it is not placed on, are dropped. Gives the rows that changed. */
  observe(hostId: HostId, epoch: number, observations: readonly sandbox.SandboxObservation[]): Promise<readonly SandboxRow[]>;
  /** The host holds no copy: the sandbox is deleted if that is desired, and otherwise failed. Releases the reservation. */
  copyAbsent(id: SandboxId, hostId: HostId): Promise<SandboxRow | undefined>;
  /** What failed before or outside the host: the reconciler's own word. */
  fail(id: SandboxId, why: EndReason): Promise<void>;
  /** Sandboxes of hosts down since before `downBefore` become lost (L-26). */
  markLost(downBefore: number): Promise<readonly SandboxRow[]>;
  get(id: SandboxId): Promise<SandboxRow | undefined>;
  /**
   * By id, `name`, `project/name`, common name or thumbprint. Deleted ones by their id only; with `deleted` by name too, where no other
   * sandbox has it now.
   * @throws {DroverError} sandbox-not-found; invalid-argument where it fits several
   */
  find(reference: string, options?: { readonly deleted?: boolean }): Promise<SandboxRow>;
  list(filter?: SandboxFilter): Promise<readonly SandboxRow[]>;
  /** The sandbox's secrets; none once it is deleted. */
  secrets(id: SandboxId): Promise<readonly SealedSecret[]>;
  /** Everything placed on the host and not deleted: the wanted side of its reconcile. */
  onHost(hostId: HostId): Promise<readonly SandboxRow[]>;
  /** Wanted and not placed, oldest first. */
  unplaced(limit: number): Promise<readonly SandboxRow[]>;
  /** Wanted running and older than their ttl. */
  expired(now: number): Promise<readonly SandboxRow[]>;
  /** --rm, and its run over without a change since `before`: to be removed. Until then its output can be read. */
  finished(before: number): Promise<readonly SandboxRow[]>;
  /** Wants its network cut, or not any more (I-4); raises the generation. The same again changes nothing. */
  setNetworkCut(id: SandboxId, cut: boolean): Promise<SandboxRow>;
  /**
   * Records that a containment is in force, and by whom, or with undefined that it is not any more; emits SandboxContained or
   * SandboxReleased. A record that is there stays, but for the reason, which a later one that has a reason replaces.
   */
  setContainment(id: SandboxId, action: ContainmentAction, by: ContainmentRecord | undefined): Promise<SandboxRow>;
  /**
   * As `fail`, reason `init-failed`, for the start (`startOf`) whose init plan failed. False, and nothing done, when that is not the start
   * that its host said last, when another is asked for, or when the host has said how it ended.
   */
  failInit(id: SandboxId, startCount: number, message: string): Promise<boolean>;
  /** Drops deleted ones: those deleted before, and all but the `keep` deleted last; so many at once. Gives how many. */
  trimDeleted(deletedBefore: number, keep: number): Promise<number>;
}

export interface SandboxDraft {
  readonly id: SandboxId;
  readonly project: Project;
  readonly name: Name;
  readonly spec: sandbox.SandboxSpec;
  readonly labels: Readonly<Record<string, string>>;
  readonly request: Room;
  /** Sealed values of the spec's secrets; none: absent. */
  readonly secrets?: readonly SealedSecret[];
}

export interface VolumeStore {
  /** @throws {DroverError} name-taken */
  create(volume: { readonly name: string; readonly hostId: HostId; readonly sizeBytes: number }): Promise<VolumeRow>;
  /** @throws {DroverError} volume-not-found */
  find(name: string): Promise<VolumeRow>;
  /** By name. `unsettled`: only those that their host has still to make or to remove. */
  list(filter?: { readonly hostId?: HostId; readonly unsettled?: boolean }): Promise<readonly VolumeRow[]>;
  /** Which sandboxes have each of them, running or not: `name` or `project/name`. */
  users(names: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>>;
  /** Keeps the volumes for the sandbox until it is deleted. @throws {DroverError} volume-not-found, failed-precondition when one is not ready */
  use(names: readonly string[], id: SandboxId): Promise<void>;
  /** Notes what its host did, if the volume is still in the state `from`. */
  settle(
    name: string,
    from: VolumeRow['state'],
    change: { readonly state?: 'ready'; readonly message: string; readonly hint: string },
  ): Promise<void>;
  /** Marks it as deleting: from here on no sandbox gets it. @throws {DroverError} volume-not-found, volume-in-use */
  remove(name: string): Promise<VolumeRow>;
  /** The host holds it no longer, or is removed itself. */
  drop(name: string): Promise<void>;
}

export interface SandboxFilter {
  readonly project?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly hostId?: HostId;
  readonly includeDeleted?: boolean;
  /** Creation order; rows after this place in it, whether or not its sandbox is still kept. */
  readonly after?: { readonly createdAt: number; readonly id: SandboxId };
  readonly limit?: number;
}

/** The registry's rows and tokens (I-7 to I-17). The rules are the registry's (`identity/`); here is what one transaction each does. */
export interface IdentityStore {
  /**
   * Keeps a certificate that was signed for a start of the sandbox, and its token's hash. The certificates of one start have the hash of
   * one signing request (hex). Beyond `certificatesPerSandbox`, the oldest go with their tokens.
   * @throws {DroverError} sandbox-not-found
   */
  issue(token: {
    readonly hash: string;
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly requestHash: string;
    readonly expiresAt: number;
  }): Promise<void>;
  /**
   * Keeps the hash of a further token for a certificate whose own is not there any more, in place of any such before; false when the
   * certificate is not known, the sandbox revoked, or registered.
   */
  issueAgain(token: {
    readonly hash: string;
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly expiresAt: number;
  }): Promise<boolean>;
  /**
   * The last part of Register, in one transaction (I-15, I-17): the token is checked and consumed, the row written or found, the access
   * token's hash kept, AgentRegistered emitted for a new row. A row with another thumbprint is replaced only by a certificate that was
   * issued after it, with its own unspent token.
   */
  register(registration: {
    readonly sandboxId: SandboxId;
    readonly thumbprint: string;
    readonly project: Project;
    readonly name: Name;
    readonly commonName: string;
    readonly tokenHash: string;
    readonly accessTokenHash: string;
  }): Promise<
    | { readonly kind: 'welcome'; readonly again: boolean; readonly identity: Identity }
    | { readonly kind: 'refused'; readonly why: 'token' | 'replay' | 'revoked' | 'unknown-sandbox' | 'collision' }
  >;
  /** By thumbprint, the next one included. */
  find(thumbprint: string): Promise<Identity | undefined>;
  findBySandbox(id: SandboxId): Promise<Identity | undefined>;
  /** Those of them that have a row, in one query (lists of sandboxes). */
  findBySandboxes(ids: readonly SandboxId[]): Promise<ReadonlyMap<SandboxId, Identity>>;
  /** Whose token this is; undefined when unknown or expired. A consumed bootstrap token is still known (I-15). */
  bearer(hash: string): Promise<(Bearer & { readonly thumbprint: string }) | undefined>;
  /** The sandbox has the token that came with the certificate of this thumbprint, unspent. One of `issueAgain` does not count. */
  mayRegister(id: SandboxId, thumbprint: string): Promise<boolean>;
  /**
   * The certificate takes the place of the registered one when it is seen; emits IdentityRenewed. False: no row, or another's thumbprint.
   * @param shown what the sandbox shows meanwhile: a next one that it is counts as seen, and stays
   */
  setNext(id: SandboxId, thumbprint: string, expiresAt: number, shown?: string): Promise<boolean>;
  /** Refreshes last seen; a next thumbprint that was seen becomes the thumbprint. */
  seen(batch: readonly { readonly sandboxId: SandboxId; readonly thumbprint: string; readonly at: number }[]): Promise<void>;
  /** Sorted by project and name. */
  list(): Promise<readonly Identity[]>;
  /** Removes row and tokens, emits IdentityEvicted; undefined when there was no row. */
  evict(id: SandboxId, why: EvictionCause): Promise<Identity | undefined>;
  /** Revokes, and evicts, or lifts that (I-4); emits IdentityRevoked or IdentityReinstated. False: it was so already, or is not there. */
  setRevoked(id: SandboxId, revoked: boolean): Promise<boolean>;
  /** Ids that have a row here and are no sandbox, or a deleted one, in the store (I-12); `listPageMax` at most. */
  orphans(): Promise<readonly SandboxId[]>;
  /** Drops tokens and certificates that expired before; gives how many tokens. */
  trimTokens(expiredBefore: number): Promise<number>;
}

/** The worldview's rows: one JSON document per sandbox (I-35). */
export interface ViewStore {
  /** `lock`: within `together`, nothing else changes them until it ends. */
  get(ids: readonly SandboxId[], options?: { readonly lock?: boolean }): Promise<ReadonlyMap<SandboxId, SandboxView>>;
  /** Writes the views, and the events that made them, in one transaction. */
  put(views: readonly SandboxView[], events: readonly EventDraft[]): Promise<void>;
}

export interface TokenStore {
  /** Keeps the hash only. */
  createJoin(token: {
    readonly hash: string;
    readonly expiresAt: number;
    readonly uses: number;
    readonly labels: Readonly<Record<string, string>>;
  }): Promise<void>;
  /** Takes one use, in one conditional update; undefined when unknown, used up or expired. The same host may take it twice (a lost answer). */
  takeJoin(hash: string, hostId: HostId): Promise<{ readonly labels: Readonly<Record<string, string>> } | undefined>;
  /** Drops what expired before; gives how many. */
  trimJoin(expiredBefore: number): Promise<number>;
  createApi(token: { readonly hash: string; readonly name: string }): Promise<void>;
  findApi(hash: string): Promise<{ readonly name: string } | undefined>;
}

export interface EventStore {
  append(events: readonly EventDraft[]): Promise<void>;
  /** Ids rise in commit order: a reader that saw id n never later finds a smaller one. */
  after(
    id: number,
    limit: number,
    filter?: { readonly kinds?: readonly string[]; readonly subject?: string },
  ): Promise<readonly StoredEvent[]>;
  lastId(): Promise<number>;
  /** The id before the first of the last `count` matching events; 0 when there are no more than those. */
  beforeLast(count: number, filter?: { readonly kinds?: readonly string[]; readonly subject?: string }): Promise<number>;
  /** Drops all but the newest `keep`; gives how many. */
  trim(keep: number): Promise<number>;
  /** Called after each commit that wrote events, in this process or (PostgreSQL) another; a wake-up, not the data. */
  onAppend(listener: () => void): () => void;
}

export interface IdempotencyStore {
  /**
   * Runs `action` once per key (L-20), as `together` does: what it changes, the key and the answer are one transaction. Repeated,
   * gives the stored answer; so do concurrent calls, after the first has ended. Failures leave nothing behind.
   * @throws {DroverError} idempotency-key-reused for the same key with another request
   */
  once(key: string, method: string, request: Uint8Array, action: (store: Tables) => Promise<Uint8Array>): Promise<Uint8Array>;
  /** Drops what is older, and all but the newest `keep`; gives how many. */
  trim(olderThan: number, keep: number): Promise<number>;
}
