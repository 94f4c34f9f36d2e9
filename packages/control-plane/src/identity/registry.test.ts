import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { canonicalCommonName, FakeClock, newHostId, newSandboxId, type HostId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { hashSecret } from '@drover/pki';
import { EventFeed } from '../feed/index.ts';
import { changesIdentity } from './evictions.ts';
import type { SandboxEvent } from '../events/typed.ts';
import { addressPollMs, addressWaitMs, addressWaits, addressWaitsPerHost, pendingSeen, seenFlushMs } from '../limits.ts';
import type { IdentityStore, Store } from '../store/index.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import { draft, readyHost, seen } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import type { RegisterClaim, RegisterOutcome } from './claims.ts';
import { Registry, type RegistryOptions } from './registry.ts';

const address = '10.88.0.7';

describe.each(['sqlite', 'postgres'] as const)('the registry on %s', (kind) => {
  const stores = new TestStores(kind);
  let clock: FakeClock;
  let url: string;
  let store: Store;
  let host: { readonly id: HostId; readonly epoch: number };
  let published: SandboxEvent[];
  let registry: Registry;
  const life = new AbortController();
  beforeAll(() => stores.start());
  afterAll(async () => {
    life.abort();
    await stores.stop();
  });
  beforeEach(async () => {
    clock = new FakeClock(1_000_000);
    url = await stores.newUrl();
    store = await stores.open({ url, clock });
    host = await readyHost(store, { slots: 1_000, cpuMillis: 1_000_000, memoryBytes: 2 ** 50 });
    published = [];
    registry = open();
  });
  afterEach(() => stores.closeAll());

  const open = (change: Partial<RegistryOptions> = {}): Registry =>
    new Registry({
      store,
      journal: { publish: (event) => void published.push(event) },
      replica: 'replica-1',
      clock,
      logger: silentLogger,
      random: () => 0,
      ...change,
    });
  /** The store, with some methods of its identities replaced. */
  const storeWith = (identities: Partial<IdentityStore>): Store => ({
    ...store,
    identities: new Proxy(store.identities, {
      get: (real, name: keyof IdentityStore) => {
        const method = identities[name] ?? real[name];
        return typeof method === 'function' ? method.bind(real) : method;
      },
    }),
  });
  const thumbprint = (): string => randomBytes(32).toString('hex');
  const placed = async (options: Parameters<typeof draft>[0] = {}): Promise<SandboxRow> => {
    const row = await store.sandboxes.create(draft(options));
    expect(await store.sandboxes.place(row.id, host.id)).toBe(true);
    return row;
  };
  const starting = async (row: SandboxRow, more: Parameters<typeof seen>[2] = {}): Promise<void> =>
    void (await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STARTING', { address, startCount: 0n, ...more })]));
  /** The valid claim of a sandbox that was just started. */
  const claimOf = async (row: SandboxRow): Promise<RegisterClaim> => {
    const print = thumbprint();
    const token = await registry.issued({
      sandboxId: row.id,
      thumbprint: print,
      notAfter: clock.now() + 86_400_000,
      csrDer: randomBytes(20),
    });
    return {
      sandboxId: row.id,
      thumbprint: print,
      commonName: canonicalCommonName(row.project, row.name),
      project: row.project,
      name: row.name,
      tokenHash: hashSecret(token),
      hostId: host.id,
      peerAddress: address,
    };
  };
  const started = async (
    options: Parameters<typeof draft>[0] = {},
  ): Promise<{ readonly row: SandboxRow; readonly claim: RegisterClaim }> => {
    const row = await placed(options);
    await starting(row);
    return { row, claim: await claimOf(row) };
  };
  const register = async (claim: RegisterClaim): Promise<RegisterOutcome> => {
    const outcome = registry.register(claim);
    // A registration waits at most this long for its address.
    let done = false;
    void outcome.finally(() => (done = true));
    await until(async () => {
      if (clock.sleeping > 0) await clock.advance(addressWaitMs);
      return done;
    });
    return await outcome;
  };
  const until = async (condition: () => Promise<boolean> | boolean): Promise<void> => {
    await vi.waitUntil(
      async () => {
        await clock.advance(0);
        return await condition();
      },
      { interval: 1 },
    );
  };

  describe('Register', () => {
    it('I-8, I-13: writes the canonical name from validated parts, and returns an access token', async () => {
      for (const [project, commonName] of [
        ['alpha', 'alpha.web'],
        ['', 'web'],
      ] as const) {
        const { row, claim } = await started({ project, name: 'web' });
        const outcome = await register(claim);
        expect(outcome).toMatchObject({ kind: 'welcome', again: false, identity: { sandboxId: row.id, commonName } });
        const token = outcome.kind === 'welcome' ? outcome.accessToken : '';
        expect(await store.identities.bearer(hashSecret(token))).toMatchObject({ sandboxId: row.id, scope: 'control' });
      }
    });

    it('I-14: records the evidence and the verdict of each check', async () => {
      const { claim } = await started();
      const outcome = await register(claim);
      const checks = outcome.kind === 'storage-failed' ? [] : outcome.checks;
      expect(checks.map(({ check, verdict, source }) => `${check} ${verdict} ${source}`)).toEqual([
        'san pass register',
        'cn pass register',
        'host pass register',
        'peer-address pass register',
        'thumbprint pass register',
        'registry pass register',
      ]);
    });

    const wrong: readonly [string, string, (claim: RegisterClaim) => Partial<RegisterClaim>, readonly string[]][] = [
      ['an invalid name', 'malformed-name', () => ({ name: 'UPPER' }), ['cn']],
      ['a name that is too long', 'malformed-name', () => ({ name: 'a'.repeat(40) }), ['cn']],
      ['no name', 'malformed-name', () => ({ name: '' }), ['cn']],
      ['a name with a dot', 'malformed-name', ({ commonName }) => ({ project: '', name: `x.${commonName}` }), ['cn']],
      ['another CN', 'cn-mismatch', ({ commonName }) => ({ commonName: `${commonName}x` }), ['cn']],
      ['no CN', 'cn-mismatch', () => ({ commonName: '' }), ['cn']],
      ['the names of another sandbox', 'record-mismatch', () => ({ project: 'other', name: 'box', commonName: 'other.box' }), ['cn']],
      ['an unknown sandbox', 'unknown-sandbox', () => ({ sandboxId: newSandboxId() }), ['cn', 'host', 'peer-address']],
      ['another host', 'host-mismatch', () => ({ hostId: newHostId() }), ['host']],
      ['another address', 'peer-address-mismatch', () => ({ peerAddress: '10.88.0.8' }), ['peer-address']],
      ['no address', 'peer-address-mismatch', () => ({ peerAddress: '' }), ['peer-address']],
      ['another host and another address', 'host-mismatch', () => ({ hostId: newHostId(), peerAddress: '::1' }), ['host', 'peer-address']],
    ];
    it.each(wrong)('I-14: refuses %s (%s), and leaves the token unspent', async (_, why, change, failing) => {
      const { claim } = await started();
      const outcome = await register({ ...claim, ...change(claim) });
      expect(outcome).toMatchObject({ kind: 'refused', why });
      const checks = outcome.kind === 'refused' ? outcome.checks : [];
      expect(checks.filter(({ verdict }) => verdict === 'fail').map(({ check }) => check)).toEqual(failing);
      // I-17
      expect(await register(claim)).toMatchObject({ kind: 'welcome', again: false });
    });

    it('I-14: an IPv4 address and its IPv6-mapped form are the same address', async () => {
      const { claim } = await started();
      expect(await register({ ...claim, peerAddress: `::ffff:${address}` })).toMatchObject({ kind: 'welcome' });
    });

    it('I-15: welcomes the same certificate again, and refuses another one and a token of another sandbox', async () => {
      const [one, other] = [await started(), await started()];
      expect(await register(one.claim)).toMatchObject({ kind: 'welcome', again: false });
      expect(await register(one.claim)).toMatchObject({ kind: 'welcome', again: true });
      const replayed = await register({ ...one.claim, thumbprint: thumbprint() });
      expect(replayed).toMatchObject({ kind: 'refused', why: 'replay' });
      expect(await register({ ...other.claim, tokenHash: one.claim.tokenHash })).toMatchObject({ kind: 'refused', why: 'token' });
      // Another sandbox uses the certificate of this one, and its token.
      const stolen = { ...other.claim, thumbprint: one.claim.thumbprint, tokenHash: one.claim.tokenHash };
      expect(await register(stolen)).toMatchObject({ kind: 'refused', why: 'token' });
      expect(await registry.lookupBySandbox(other.row.id)).toEqual({ kind: 'unknown' });
    });

    it('I-16: an error of the store is a storage failure, not a refusal', async () => {
      const { claim } = await started();
      const failing = open({ store: storeWith({ register: () => Promise.reject(new Error('disk I/O error')) }) });
      expect(await failing.register(claim)).toMatchObject({ kind: 'storage-failed', error: { message: 'disk I/O error' } });
      expect(await register(claim)).toMatchObject({ kind: 'welcome' });
    });

    it('I-4: a revoked sandbox is refused until it is reinstated, and then receives a token for its present certificate', async () => {
      const { row, claim } = await started();
      await register(claim);
      await registry.revoke(row.id);
      expect(await registry.lookupBySandbox(row.id)).toEqual({ kind: 'unknown' });
      expect(await register(claim)).toMatchObject({ kind: 'refused', why: 'revoked' });
      expect(await registry.standing(row.id, claim.thumbprint)).toEqual({ identity: undefined, mayRegister: false, revoked: true });
      expect(await registry.secondToken(row.id, claim.thumbprint)).toBeUndefined();
      expect(await registry.reinstate(row.id)).toBe(true);
      expect(await registry.reinstate(row.id)).toBe(false);
      expect(await registry.standing(row.id, claim.thumbprint)).toEqual({ identity: undefined, mayRegister: false, revoked: false });
      expect(await register(claim)).toMatchObject({ kind: 'refused', why: 'token' });
      const token = await registry.secondToken(row.id, claim.thumbprint);
      expect(await register({ ...claim, tokenHash: hashSecret(token ?? '') })).toMatchObject({ kind: 'welcome', again: false });
      expect(await registry.secondToken(row.id, thumbprint())).toBeUndefined();
    });

    it('I-8: any input from outside has a typed outcome', async () => {
      const { row, claim } = await started({ project: 'alpha' });
      await register(claim);
      const text = fc.oneof(fc.string(), fc.string({ unit: 'binary' }), fc.string({ minLength: 100, maxLength: 5_000 }));
      const mostly = <T>(right: T, other: fc.Arbitrary<T>): fc.Arbitrary<T> => fc.oneof(fc.constant(right), other);
      const outside = fc.record({
        sandboxId: mostly<string>(row.id, fc.constantFrom(newSandboxId(), 'sb-x', '../..')),
        thumbprint: mostly(claim.thumbprint, fc.constantFrom('f'.repeat(64), thumbprint())),
        commonName: mostly(claim.commonName, text),
        project: mostly(claim.project, text),
        name: mostly(claim.name, text),
        tokenHash: mostly(claim.tokenHash, text.map(hashSecret)),
        hostId: mostly<string>(claim.hostId, text),
        peerAddress: mostly(claim.peerAddress, text),
      });
      await fc.assert(
        fc.asyncProperty(outside, async (input) => {
          const asked = { ...input, sandboxId: input.sandboxId as SandboxId, hostId: input.hostId as HostId };
          const outcome = await register(asked);
          const same = Object.entries(asked).every(([key, value]) => value === claim[key as keyof RegisterClaim]);
          expect(outcome.kind).toBe(same ? 'welcome' : 'refused');
          const found = await registry.lookup(asked.thumbprint, asked.commonName);
          expect(found.kind).toBe(asked.thumbprint === claim.thumbprint && asked.commonName === claim.commonName ? 'found' : 'unknown');
        }),
        { numRuns: 60 },
      );
    });
  });

  describe('a sandbox that registers before its host has reported its address (I-14)', () => {
    it('waits, and is admitted when the host reports the address', async () => {
      const row = await placed();
      const outcome = registry.register(await claimOf(row));
      await until(() => clock.sleeping > 0);
      await starting(row);
      await clock.advance(addressWaitMs / 2);
      expect(await outcome).toMatchObject({ kind: 'welcome' });
    });

    it('is admitted at the event, without a poll', async () => {
      const row = await placed();
      let wake = (): void => undefined;
      registry = open({ feed: { on: (subject, call) => ((wake = subject === row.id ? call : wake), () => undefined) } });
      const outcome = registry.register(await claimOf(row));
      await until(() => clock.sleeping > 0);
      await starting(row);
      wake();
      expect(await outcome).toMatchObject({ kind: 'welcome' });
    });

    it('is not admitted by the address of an earlier start', async () => {
      const { row } = await started();
      const restarted = await claimOf(row);
      const outcome = registry.register({ ...restarted, peerAddress: '10.88.0.9' });
      await until(() => clock.sleeping > 0);
      await starting(row, { address: '10.88.0.9', startCount: 1n, sequence: 9n });
      await clock.advance(addressWaitMs / 2);
      expect(await outcome).toMatchObject({ kind: 'welcome' });
    });

    it('is refused when the host does not report in time', async () => {
      const claim = await claimOf(await placed());
      const began = clock.now();
      expect(await register(claim)).toMatchObject({ kind: 'refused', why: 'peer-address-mismatch' });
      expect(clock.now() - began).toBe(addressWaitMs);
      expect(clock.sleeping).toBe(0);
    });

    it('is refused immediately for a reason that no address can change', async () => {
      const claim = await claimOf(await placed());
      expect(await registry.register({ ...claim, hostId: newHostId() })).toMatchObject({ kind: 'refused', why: 'host-mismatch' });
    });

    /** The registry with the given records of sandboxes. */
    const knowing = (get: (id: SandboxId) => SandboxRow | undefined): Registry => {
      const sandboxes = new Proxy(store.sandboxes, {
        get: (real, name: keyof Store['sandboxes']) =>
          name === 'get' ? (id: SandboxId) => Promise.resolve(get(id)) : real[name].bind(real),
      });
      return open({ store: { ...store, sandboxes } });
    };

    it('is refused immediately when too many registrations wait, on any hosts', async () => {
      const row = await placed();
      const claim = await claimOf(row);
      const claims = Array.from({ length: addressWaits + 1 }, () => ({ ...claim, sandboxId: newSandboxId(), hostId: newHostId() }));
      const hosts = new Map(claims.map(({ sandboxId, hostId }) => [sandboxId, hostId]));
      let known = row;
      const busy = knowing((id) => ({ ...known, id, hostId: hosts.get(id) }));
      const waiting = claims.slice(1).map(async (one) => await busy.register(one));
      await until(() => clock.sleeping === addressWaits);
      expect(await busy.register(claims[0] ?? claim)).toMatchObject({ kind: 'refused', why: 'peer-address-mismatch' });
      // None of them has a record.
      known = { ...row, address };
      await clock.advance(addressPollMs);
      expect(new Set((await Promise.all(waiting)).map((outcome) => outcome.kind === 'refused' && outcome.why))).toEqual(
        new Set(['unknown-sandbox']),
      );
      expect(clock.sleeping).toBe(0);
    });

    it('is refused immediately when too many registrations of its host wait; those of another host are not', async () => {
      const row = await placed();
      const claim = await claimOf(row);
      let known = await store.sandboxes.get(row.id);
      const elsewhere = { ...claim, sandboxId: newSandboxId(), hostId: newHostId() };
      const busy = knowing((id) => (id === row.id ? known : { ...row, id, hostId: elsewhere.hostId }));
      const waiting = Array.from({ length: addressWaitsPerHost }, async () => await busy.register(claim));
      await until(() => clock.sleeping === addressWaitsPerHost);
      const other = busy.register(elsewhere);
      await until(() => clock.sleeping === addressWaitsPerHost + 1);
      expect(await busy.register(claim)).toMatchObject({ kind: 'refused', why: 'peer-address-mismatch' });
      // The waiting registrations are admitted, and release their places.
      known &&= { ...known, address };
      await clock.advance(addressPollMs);
      const outcomes = await Promise.all(waiting);
      expect(outcomes.filter((outcome) => outcome.kind === 'welcome' && !outcome.again)).toHaveLength(1);
      expect(outcomes.every((outcome) => outcome.kind === 'welcome')).toBe(true);
      await clock.advance(addressWaitMs);
      expect(await other).toMatchObject({ kind: 'refused', why: 'peer-address-mismatch' });
      expect(clock.sleeping).toBe(0);
    });
  });

  describe('looking up', () => {
    it('I-9: returns the same result for every failure', async () => {
      const { row, claim } = await started({ project: 'alpha' });
      await register(claim);
      const { commonName } = claim;
      expect(await registry.lookup(claim.thumbprint, commonName)).toMatchObject({ kind: 'found', identity: { sandboxId: row.id } });
      const failing = open({
        store: storeWith({ find: () => Promise.reject(new Error('gone')), findBySandbox: () => Promise.reject(new Error('gone')) }),
      });
      for (const answer of [
        await registry.lookup(thumbprint(), commonName),
        await registry.lookup(claim.thumbprint, 'alpha.other'),
        await registry.lookup(claim.thumbprint, ''),
        await registry.lookup(claim.thumbprint, `${commonName}\0`),
        await failing.lookup(claim.thumbprint, commonName),
        await registry.lookupBySandbox(newSandboxId()),
        await failing.lookupBySandbox(row.id),
      ]) {
        expect(answer).toEqual({ kind: 'unknown' });
      }
      expect(await registry.lookupBySandbox(row.id)).toMatchObject({ kind: 'found', identity: { thumbprint: claim.thumbprint } });
    });

    it('I-27: the standing of a sandbox distinguishes a miss from a mismatch, and fails when the store does', async () => {
      const { row, claim } = await started();
      expect(await registry.standing(row.id, claim.thumbprint)).toEqual({ identity: undefined, mayRegister: true, revoked: false });
      await register(claim);
      const identity = await store.identities.findBySandbox(row.id);
      expect(await registry.standing(row.id, claim.thumbprint)).toEqual({ identity, mayRegister: false, revoked: false });
      expect(await registry.standing(row.id, thumbprint())).toEqual({ identity, mayRegister: false, revoked: false });
      // After a restart the row is still that of the previous start.
      const next = await claimOf(row);
      expect(await registry.standing(row.id, next.thumbprint)).toEqual({ identity, mayRegister: true, revoked: false });
      const failing = open({ store: storeWith({ findBySandbox: () => Promise.reject(new Error('gone')) }) });
      await expect(failing.standing(row.id, claim.thumbprint)).rejects.toThrow('gone');
    });

    it('I-8: a zero thumbprint and an empty sandbox id are programming errors', async () => {
      const none = '' as SandboxId;
      const { row, claim } = await started();
      for (const zero of ['', '0', '0'.repeat(64)]) {
        await expect(registry.lookup(zero, 'a')).rejects.toThrow(TypeError);
        await expect(registry.standing(row.id, zero)).rejects.toThrow(TypeError);
        await expect(registry.register({ ...claim, thumbprint: zero })).rejects.toThrow(TypeError);
        await expect(registry.issued({ sandboxId: row.id, thumbprint: zero, notAfter: 1 })).rejects.toThrow(TypeError);
        await expect(registry.renewed(row.id, zero, claim.thumbprint)).rejects.toThrow(TypeError);
      }
      await expect(registry.register({ ...claim, sandboxId: none })).rejects.toThrow(TypeError);
      await expect(registry.lookupBySandbox(none)).rejects.toThrow(TypeError);
      await expect(registry.evict(none, 'evicted')).rejects.toThrow(TypeError);
    });
  });

  describe('in the long run', () => {
    /** Runs the registry's own work until the test is over. */
    const feedOf = async (of: Store): Promise<EventFeed & AsyncDisposable> => {
      const feed = await EventFeed.open(of.events, clock, silentLogger);
      return Object.assign(feed, { [Symbol.asyncDispose]: async () => await feed.close() });
    };
    const running = async <T>(work: () => Promise<T>): Promise<T> => {
      const stop = new AbortController();
      const run = registry.run(stop.signal);
      await until(() => clock.sleeping >= 1);
      try {
        return await work();
      } finally {
        stop.abort();
        await run;
      }
    };

    it('I-10: writes the last-seen times at intervals, and the rest at the end', async () => {
      const [one, two] = [await started(), await started()];
      for (const { claim } of [one, two]) await register(claim);
      const lastSeen = async ({ row }: typeof one): Promise<number | undefined> =>
        (await store.identities.findBySandbox(row.id))?.lastSeenAt;
      const registeredAt = clock.now();
      await running(async () => {
        await clock.advance(10);
        registry.seen(one.row.id, one.claim.thumbprint);
        const at = clock.now();
        expect(await lastSeen(one)).toBe(registeredAt);
        await clock.advance(seenFlushMs);
        await until(async () => (await lastSeen(one)) === at);
        expect(await lastSeen(two)).toBe(registeredAt);
        registry.seen(two.row.id, two.claim.thumbprint);
      });
      expect(await lastSeen(two)).toBe(clock.now());
    });

    it('I-10: a failed write is repeated with the next one, unless the sandbox was seen again', async () => {
      const { row, claim } = await started();
      await register(claim);
      let refuse = true;
      const writes: number[] = [];
      registry = open({
        store: storeWith({
          seen: async (batch) => {
            if (refuse) throw new Error('busy');
            writes.push(...batch.map(({ at }) => at));
            await store.identities.seen(batch);
          },
        }),
      });
      await running(async () => {
        registry.seen(row.id, claim.thumbprint);
        const at = clock.now();
        await clock.advance(seenFlushMs);
        refuse = false;
        await clock.advance(seenFlushMs);
        await until(() => writes.length > 0);
        expect(writes).toEqual([at]);
      });
    });

    it('I-10: bounds the number of pending last-seen times', async () => {
      let size = 0;
      registry = open({ store: storeWith({ seen: (batch) => Promise.resolve(void (size = batch.length)) }) });
      await running(async () => {
        for (let i = 0; i < pendingSeen + 10; i++) registry.seen(`sb-${i}` as SandboxId, 'ab');
        registry.seen('sb-1' as SandboxId, 'ab');
        await clock.advance(seenFlushMs);
        await until(() => size > 0);
      });
      expect(size).toBe(pendingSeen);
    });

    it('I-6: a renewed certificate is valid immediately, and replaces the old one when it is first seen', async () => {
      const { row, claim } = await started();
      await register(claim);
      const next = thumbprint();
      await registry.renewed(row.id, next, claim.thumbprint);
      await registry.renewed(row.id, next, claim.thumbprint);
      for (const either of [claim.thumbprint, next]) {
        expect(await registry.lookup(either, claim.commonName)).toMatchObject({ kind: 'found' });
      }
      await running(async () => {
        registry.seen(row.id, next);
        await clock.advance(seenFlushMs);
        await until(async () => (await registry.lookup(claim.thumbprint, claim.commonName)).kind === 'unknown');
      });
      expect(await registry.lookup(next, claim.commonName)).toMatchObject({ kind: 'found', identity: { nextThumbprint: undefined } });
      const renewals = (await store.events.after(0, 100, { subject: row.id })).filter(({ type }) => type === 'IdentityRenewed');
      expect(renewals).toHaveLength(1);
      await expect(registry.renewed(newSandboxId(), next, claim.thumbprint)).rejects.toMatchObject({ code: 'conflict' });
    });

    it('I-11: reports an eviction to every replica, so that the sessions end', async () => {
      const other = await stores.open({ url, clock });
      const elsewhere = open({ store: other });
      const [evicted, revoked, destroyed, early] = [await started(), await started(), await started(), await started()];
      for (const { claim } of [evicted, revoked, destroyed]) await register(claim);
      const received: string[] = [];
      await using feed = await feedOf(store);
      feed.listen(() => {
        throw new Error('a listener that fails is isolated');
      });
      feed.listen((subject, event) => void (event !== undefined && changesIdentity(event) && received.push(subject)));
      const off = feed.listen(() => void received.push('off'));
      off();
      await running(async () => {
        const does = async (what: () => Promise<unknown>, expected: readonly string[]): Promise<void> => {
          received.splice(0);
          await what();
          // Another connection receives the event by NOTIFY (PostgreSQL) or at the next poll (SQLite).
          await expect
            .poll(
              async () => {
                await clock.advance(50);
                return received;
              },
              { timeout: 20_000, interval: 1 },
            )
            .toEqual(expected);
        };
        await does(async () => await elsewhere.evict(evicted.row.id, 'evicted'), [evicted.row.id]);
        await does(async () => await elsewhere.evict(evicted.row.id, 'evicted'), []);
        await does(async () => await elsewhere.revoke(revoked.row.id), [revoked.row.id]);
        await does(async () => await elsewhere.reinstate(revoked.row.id), [revoked.row.id]);
        // A revocation before the registration also changes the identity of an open session.
        await does(async () => await elsewhere.revoke(early.row.id), [early.row.id]);
        await does(async () => {
          await other.sandboxes.setDesired(destroyed.row.id, 'deleted');
          await other.sandboxes.copyAbsent(destroyed.row.id, host.id);
        }, [destroyed.row.id]);
      });
    });

    it('I-12: evicts at the start the identities without a sandbox, and keeps those of stopped sandboxes', async () => {
      const [stopped, lost] = [await started(), await started()];
      for (const { claim } of [stopped, lost]) await register(claim);
      await store.sandboxes.observe(host.id, host.epoch, [seen(stopped.row, 'STOPPED', { sequence: 9n })]);
      for (const table of ['sandbox_views where sandbox_id', 'sandboxes where id'])
        await stores.run(url, `delete from ${table} = '${lost.row.id}'`);
      expect(await registry.reap()).toBe(1);
      expect((await registry.snapshot()).map(({ sandboxId }) => sandboxId)).toEqual([stopped.row.id]);
      expect(await registry.reap()).toBe(0);
      expect(published).toEqual([]);
    });

    it('I-12: attempts the listing three times, then continues without it', async () => {
      let tries = 0;
      const failing = (times: number): Registry => {
        tries = 0;
        const orphans = async (): Promise<readonly SandboxId[]> => {
          if (++tries <= times) throw new Error('the database is locked');
          return await store.identities.orphans();
        };
        return open({ store: storeWith({ orphans }) });
      };
      const reap = async (from: Registry): Promise<number> => {
        const reaping = from.reap();
        await clock.advance(10_000);
        return await reaping;
      };
      expect([await reap(failing(2)), tries, published.length]).toEqual([0, 3, 0]);
      expect([await reap(failing(3)), tries]).toEqual([0, 3]);
      const data = { attempts: 3, message: 'the database is locked' };
      expect(published).toEqual([{ kind: 'identity', type: 'ReapDegraded', subject: 'replica-1', data }]);
    });
  });
});
