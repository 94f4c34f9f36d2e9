import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { canonicalCommonName, FakeClock, newSandboxId, type SandboxId } from '@drover/foundation';
import { accessTokensPerSandbox, certificatesPerSandbox } from '../limits.ts';
import { emptyView } from '../worldview/apply.ts';
import type { SandboxView } from '../worldview/worldview.ts';
import type { IdentityStore, Store } from './index.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import { draft, readyHost, seen } from './testing/fixtures.ts';
import { TestStores } from './testing/stores.ts';

type Registered = Awaited<ReturnType<IdentityStore['register']>>;

describe.each(['sqlite', 'postgres'] as const)('identities on %s', (kind) => {
  const stores = new TestStores(kind);
  let clock: FakeClock;
  let url: string;
  let store: Store;
  let host: Awaited<ReturnType<typeof readyHost>> | undefined;
  let hour: number;
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  beforeEach(async () => {
    host = undefined;
    clock = new FakeClock(1_000_000);
    url = await stores.newUrl();
    store = await stores.open({ url, clock });
    hour = clock.now() + 3_600_000;
  });
  afterEach(() => stores.closeAll());

  let count = 0;
  /** A new thumbprint, as long as a SHA-256. */
  const hex = (): string => (++count).toString(16).padStart(64, 'a');
  const box = async (options: Parameters<typeof draft>[0] = {}): Promise<SandboxRow> => await store.sandboxes.create(draft(options));
  interface Start {
    readonly row: SandboxRow;
    readonly thumbprint: string;
    readonly hash: string;
  }
  const issue = async (row: SandboxRow, requestHash = hex()): Promise<Start> => {
    const start = { row, thumbprint: hex(), hash: hex() };
    await store.identities.issue({ hash: start.hash, sandboxId: row.id, thumbprint: start.thumbprint, requestHash, expiresAt: hour });
    return start;
  };
  const register = async ({ row, thumbprint, hash }: Start, change: { readonly hash?: string } = {}): Promise<Registered> =>
    await store.identities.register({
      sandboxId: row.id,
      thumbprint,
      project: row.project,
      name: row.name,
      commonName: canonicalCommonName(row.project, row.name),
      tokenHash: change.hash ?? hash,
      accessTokenHash: hex(),
    });
  const registered = async (options: Parameters<typeof draft>[0] = {}): Promise<Start> => {
    const start = await issue(await box(options));
    expect(await register(start)).toMatchObject({ kind: 'welcome', again: false });
    return start;
  };
  /** The host reports the sandbox as running, in this start. */
  const runs = async (row: SandboxRow, startCount: bigint): Promise<void> => {
    host ??= await readyHost(store);
    await store.sandboxes.place(row.id, host.id);
    await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING', { sequence: startCount, startCount })]);
  };
  const refused = (why: string): object => ({ kind: 'refused', why });
  const events = async (id: SandboxId): Promise<string[]> =>
    (await store.events.after(0, 1000, { subject: id, kinds: ['identity'] })).map(({ type, data }) =>
      'why' in data ? `${type} ${String(data['why'])}` : type,
    );
  const mayRegister = async ({ row, thumbprint }: Start): Promise<boolean> => await store.identities.mayRegister(row.id, thumbprint);
  const destroy = async (id: SandboxId): Promise<void> => void (await store.sandboxes.setDesired(id, 'deleted'));

  it('I-7: a row records the sandbox, its certificate and the time of the registration', async () => {
    const row = await box({ project: 'alpha', name: 'web' });
    const start = await issue(row);
    await clock.advance(5);
    expect(await register(start)).toEqual({
      kind: 'welcome',
      again: false,
      identity: {
        thumbprint: start.thumbprint,
        nextThumbprint: undefined,
        sandboxId: row.id,
        project: 'alpha',
        name: 'web',
        commonName: 'alpha.web',
        registeredAt: clock.now(),
        lastSeenAt: clock.now(),
      },
    });
    expect(await store.identities.find(start.thumbprint)).toMatchObject({ sandboxId: row.id });
    expect(await store.identities.findBySandbox(row.id)).toMatchObject({ thumbprint: start.thumbprint });
    expect(await store.identities.findBySandboxes([row.id, newSandboxId()])).toEqual(
      new Map([[row.id, await store.identities.findBySandbox(row.id)]]),
    );
    expect(await store.identities.find(hex())).toBeUndefined();
  });

  it('a sandbox is found by every column of the list of identities: id, common name, name, thumbprint or its prefix', async () => {
    const { row, thumbprint } = await registered({ project: 'lab', name: 'web' });
    const other = await registered({ name: 'other' });
    for (const reference of [row.id, 'lab.web', 'lab/web', 'web', thumbprint, thumbprint.toUpperCase()]) {
      expect(await store.sandboxes.find(reference)).toMatchObject({ id: row.id });
    }
    // The thumbprints in these tests differ only in their last digits.
    await expect(store.sandboxes.find(thumbprint.slice(0, 16))).rejects.toMatchObject({ code: 'invalid-argument' });
    await destroy(other.row.id);
    expect(await store.sandboxes.find(thumbprint.slice(0, 16))).toMatchObject({ id: row.id });
    for (const reference of ['lab.other', 'web.lab', 'f'.repeat(64)]) {
      await expect(store.sandboxes.find(reference)).rejects.toMatchObject({ code: 'sandbox-not-found' });
    }
    await destroy(row.id);
    await expect(store.sandboxes.find('lab/web')).rejects.toMatchObject({ code: 'sandbox-not-found' });
    expect(await store.sandboxes.find('lab/web', { deleted: true })).toMatchObject({ id: row.id });
  });

  it('I-7: a thumbprint belongs to one sandbox: a collision is a result, not an exception', async () => {
    const [first, second] = [await registered(), await box()];
    const token = hex();
    await expect(
      store.identities.issue({ hash: token, sandboxId: second.id, thumbprint: first.thumbprint, requestHash: hex(), expiresAt: hour }),
    ).rejects.toThrow();
    expect(await register({ row: second, thumbprint: first.thumbprint, hash: token })).toEqual(refused('token'));
    const own = await issue(second);
    await store.identities.setNext(first.row.id, hex(), hour);
    const { nextThumbprint = '' } = (await store.identities.findBySandbox(first.row.id)) ?? {};
    await register(own);
    expect(await store.identities.setNext(second.id, nextThumbprint, hour)).toBe(false);
    expect(await store.identities.setNext(second.id, first.thumbprint, hour)).toBe(false);
  });

  it('I-10: the list is sorted by project and name', async () => {
    for (const [project, name] of [
      ['b', 'a'],
      ['', 'z-1'],
      ['a', 'b'],
      ['', 'z1'],
      ['a', 'a'],
      ['a-b', 'a'],
    ] as const) {
      await registered({ project, name });
    }
    const listed = (await store.identities.list()).map((identity) => `${identity.project}/${identity.name}`);
    expect(listed).toEqual(['/z-1', '/z1', 'a/a', 'a/b', 'a-b/a', 'b/a']);
  });

  it('I-15: a repeated registration with the same certificate succeeds, also with the spent token, and emits nothing', async () => {
    const start = await registered();
    const before = await store.identities.findBySandbox(start.row.id);
    await clock.advance(1_000);
    expect(await register(start)).toEqual({ kind: 'welcome', again: true, identity: before });
    expect(await register(start, { hash: hex() })).toEqual(refused('token'));
    expect(await events(start.row.id)).toEqual(['AgentRegistered']);
  });

  it('I-15: another certificate is a replay, unless it is of a later start and has its own unspent token', async () => {
    const row = await box();
    await runs(row, 1n);
    const first = await issue(row);
    await register(first);
    expect(await register({ row, thumbprint: hex(), hash: first.hash })).toEqual(refused('replay'));
    const second = await issue(row);
    expect(await register({ ...second, hash: first.hash })).toEqual(refused('replay'));
    expect(await mayRegister(second)).toBe(true);
    await runs(row, 2n);
    expect(await register(second)).toMatchObject({ kind: 'welcome', again: false, identity: { thumbprint: second.thumbprint } });
    // I-11: the restart replaced the row, so the first certificate belongs to no sandbox.
    expect(await store.identities.find(first.thumbprint)).toBeUndefined();
    expect(await register(first)).toEqual(refused('replay'));
    expect(await events(row.id)).toEqual(['AgentRegistered', 'AgentRegistered']);
  });

  it('I-15: an earlier start that registers late does not block the later one, which replaces it', async () => {
    const row = await box();
    const [first, second] = [await issue(row), await issue(row)];
    expect(await register(first)).toMatchObject({ kind: 'welcome' });
    expect(await register(second)).toMatchObject({ kind: 'welcome', identity: { thumbprint: second.thumbprint } });
    expect(await register(first)).toEqual(refused('replay'));
  });

  it('I-13: any certificate of a start may register, but only one of them', async () => {
    const row = await box();
    for (const chosen of [0, 1, 2]) {
      const request = hex();
      const of = [await issue(row, request), await issue(row, request), await issue(row, request)];
      for (const one of of) expect(await mayRegister(one)).toBe(true);
      const one = of[chosen];
      if (one === undefined) throw new Error('there are three');
      expect(await register(one)).toMatchObject({ kind: 'welcome', again: false });
      // Another certificate for the signing request of a start that has registered.
      const late = await issue(row, request);
      for (const other of [...of.filter((start) => start !== one), late]) expect(await register(other)).toEqual(refused('replay'));
    }
  });

  it('I-17: only the registration that a token was issued for consumes it', async () => {
    const [start, other] = [await issue(await box()), await issue(await box())];
    expect(await register({ ...start, row: other.row })).toEqual(refused('token'));
    expect(await register({ ...start, thumbprint: other.thumbprint })).toEqual(refused('token'));
    expect(await register(start, { hash: other.hash })).toEqual(refused('token'));
    expect([await mayRegister(start), await mayRegister(other)]).toEqual([true, true]);
    await register(start);
    expect([await mayRegister(start), await mayRegister(other)]).toEqual([false, true]);
  });

  it('I-17: the token of one start cannot register another start of the same sandbox', async () => {
    const row = await box();
    const [first, second] = [await issue(row), await issue(row)];
    expect(await register(second, { hash: first.hash })).toEqual(refused('token'));
    expect(await register(first, { hash: second.hash })).toEqual(refused('token'));
    expect(await register(first)).toMatchObject({ kind: 'welcome' });
    // After the registration, the certificate of another start is still a replay.
    expect(await register(second, { hash: first.hash })).toEqual(refused('replay'));
    expect(await register(second)).toMatchObject({ kind: 'welcome', again: false });
  });

  it('I-17: of two concurrent calls with the same token, one writes the row and both succeed', async () => {
    const start = await issue(await box());
    const outcomes = await Promise.all([register(start), register(start), register(start)]);
    expect(outcomes.map((outcome) => outcome.kind === 'welcome')).toEqual([true, true, true]);
    expect(outcomes.filter((outcome) => outcome.kind === 'welcome' && outcome.again)).toHaveLength(2);
    expect(await events(start.row.id)).toEqual(['AgentRegistered']);
  });

  it('I-17: a token is valid until it expires, and is dropped later', async () => {
    const [unspent, spent] = [await issue(await box()), await registered()];
    await clock.advance(hour - clock.now() - 1);
    expect(await mayRegister(unspent)).toBe(true);
    expect(await store.identities.trimTokens(clock.now())).toBe(0);
    await clock.advance(1);
    expect([await mayRegister(unspent), await register(unspent)]).toEqual([false, refused('token')]);
    expect(await store.identities.bearer(unspent.hash)).toBeUndefined();
    expect(await store.identities.trimTokens(clock.now() + 1)).toBe(2);
    // The registration stays valid; the session renews its certificate.
    expect(await store.identities.find(spent.thumbprint)).toMatchObject({ sandboxId: spent.row.id });
  });

  it('I-18: a token identifies its sandbox and scope, also a spent bootstrap token', async () => {
    const row = await box();
    const start = await issue(row);
    const about = { sandboxId: row.id, thumbprint: start.thumbprint };
    expect(await store.identities.bearer(start.hash)).toEqual({ ...about, scope: 'register' });
    const access = hex();
    const { thumbprint, hash: tokenHash } = start;
    const names = { project: row.project, name: row.name, commonName: row.name };
    await store.identities.register({ sandboxId: row.id, thumbprint, ...names, tokenHash, accessTokenHash: access });
    expect(await store.identities.bearer(start.hash)).toEqual({ ...about, scope: 'register' });
    expect(await store.identities.bearer(access)).toEqual({ ...about, scope: 'control' });
    expect(await store.identities.bearer(hex())).toBeUndefined();
    await register(await issue(row));
    // The registration of that token has ended.
    expect(await store.identities.bearer(access)).toBeUndefined();
  });

  it('retains only the newest access tokens of a registration', async () => {
    const start = await issue(await box());
    const given: string[] = [];
    for (let i = 0; i < accessTokensPerSandbox + 2; i++) {
      const access = hex();
      given.push(access);
      const { row, thumbprint, hash } = start;
      const names = { project: row.project, name: row.name, commonName: row.name };
      await store.identities.register({ sandboxId: row.id, thumbprint, ...names, tokenHash: hash, accessTokenHash: access });
      await clock.advance(1);
    }
    const known = await Promise.all(given.map(async (hash) => (await store.identities.bearer(hash)) !== undefined));
    expect(known).toEqual([false, false, ...Array.from({ length: accessTokensPerSandbox }, () => true)]);
  });

  it('retains only the newest certificates of a sandbox, and the registered one', async () => {
    const row = await box();
    const first = await issue(row);
    await register(first);
    const later: Start[] = [];
    for (let i = 0; i < certificatesPerSandbox + 2; i++) later.push(await issue(row));
    const may = await Promise.all(later.map(mayRegister));
    expect(may).toEqual([false, false, ...Array.from({ length: certificatesPerSandbox }, () => true)]);
    expect(await store.identities.bearer(first.hash)).toBeDefined();
    for (const dropped of later.slice(0, 2)) expect(await register(dropped)).toEqual(refused('replay'));
  });

  it('I-6: a renewed certificate is valid beside its predecessor, and alone once it is presented', async () => {
    const start = await registered();
    const { row, thumbprint } = start;
    const next = hex();
    expect(await store.identities.setNext(row.id, next, hour)).toBe(true);
    expect(await store.identities.setNext(row.id, next, hour)).toBe(true);
    const both = await store.identities.findBySandbox(row.id);
    expect(both).toMatchObject({ thumbprint, nextThumbprint: next });
    expect(await store.identities.find(next)).toEqual(both);
    expect(await store.identities.find(thumbprint)).toEqual(both);
    await store.identities.seen([{ sandboxId: row.id, thumbprint, at: clock.now() + 10 }]);
    expect(await store.identities.findBySandbox(row.id)).toEqual({ ...both, lastSeenAt: clock.now() + 10 });
    await store.identities.seen([{ sandboxId: row.id, thumbprint: next, at: clock.now() + 20 }]);
    expect(await store.identities.findBySandbox(row.id)).toEqual({
      ...both,
      thumbprint: next,
      nextThumbprint: undefined,
      lastSeenAt: clock.now() + 20,
    });
    expect(await store.identities.find(thumbprint)).toBeUndefined();
    // The bootstrap token now belongs to the renewed certificate, and still allows a repeated Register (I-15).
    expect(await register({ ...start, thumbprint: next })).toMatchObject({ kind: 'welcome', again: true });
    expect(await events(row.id)).toEqual(['AgentRegistered', 'IdentityRenewed']);
    expect(await store.identities.setNext(newSandboxId(), hex(), hour)).toBe(false);
  });

  it('I-6: a renewed certificate that the sandbox presents is not dropped for the next one', async () => {
    const { row } = await registered();
    const [second, third, fourth] = [hex(), hex(), hex()];
    await store.identities.setNext(row.id, second, hour);
    expect(await store.identities.setNext(row.id, third, hour, second)).toBe(true);
    expect(await store.identities.findBySandbox(row.id)).toMatchObject({ thumbprint: second, nextThumbprint: third });
    // A pending certificate that the sandbox does not present was not accepted.
    expect(await store.identities.setNext(row.id, fourth, hour, second)).toBe(true);
    expect(await store.identities.findBySandbox(row.id)).toMatchObject({ thumbprint: second, nextThumbprint: fourth });
    expect(await store.identities.find(third)).toBeUndefined();
  });

  it('I-6: a renewed certificate does not block the next start', async () => {
    const start = await registered();
    await store.identities.setNext(start.row.id, hex(), hour);
    const again = await issue(start.row);
    expect(await register(again)).toMatchObject({ kind: 'welcome', identity: { nextThumbprint: undefined } });
    expect(await register(start)).toEqual(refused('replay'));
  });

  it('I-10: the last-seen time only rises, and one call updates many sandboxes', async () => {
    const starts = [await registered(), await registered(), await registered()];
    const at = clock.now();
    await store.identities.seen(starts.map(({ row, thumbprint }, i) => ({ sandboxId: row.id, thumbprint, at: at + i + 1 })));
    const [first, second] = starts;
    if (first === undefined || second === undefined) throw new Error('there are three');
    await store.identities.seen([
      { sandboxId: first.row.id, thumbprint: first.thumbprint, at: at - 50 },
      { sandboxId: second.row.id, thumbprint: first.thumbprint, at: at + 99 },
      { sandboxId: newSandboxId(), thumbprint: hex(), at: at + 99 },
    ]);
    const seenAt = await Promise.all(starts.map(async ({ row }) => (await store.identities.findBySandbox(row.id))?.lastSeenAt));
    expect(seenAt).toEqual([at + 1, at + 2, at + 3]);
  });

  it('I-11: destroying a sandbox deletes its row, tokens and view; a stop or an exit does not', async () => {
    const host = await readyHost(store);
    const start = await registered();
    const { row } = start;
    await store.sandboxes.place(row.id, host.id);
    await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING')]);
    await store.sandboxes.setDesired(row.id, 'stopped');
    await store.sandboxes.observe(host.id, host.epoch, [seen({ ...row, generation: 2, observedSequence: 1 }, 'STOPPED')]);
    expect(await store.identities.find(start.thumbprint)).toBeDefined();
    await destroy(row.id);
    // Until its host reports the deletion, a sandbox that is to be deleted may still be reachable.
    expect(await store.identities.find(start.thumbprint)).toBeDefined();
    await store.sandboxes.copyAbsent(row.id, host.id);
    expect(await store.identities.find(start.thumbprint)).toBeUndefined();
    expect(await store.identities.bearer(start.hash)).toBeUndefined();
    expect(await store.views.get([row.id])).toEqual(new Map());
    expect(await events(row.id)).toEqual(['AgentRegistered', 'IdentityEvicted destroyed']);
  });

  it('I-11: a sandbox that is deleted or to be deleted gets no certificate and cannot register', async () => {
    const host = await readyHost(store);
    const [deleted, going] = [await box(), await box()];
    const [of, goingOf] = [await issue(deleted), await issue(going)];
    await destroy(deleted.id);
    await store.sandboxes.place(going.id, host.id);
    await destroy(going.id);
    expect(await register(of)).toEqual(refused('unknown-sandbox'));
    expect(await register(goingOf)).toEqual(refused('unknown-sandbox'));
    await expect(issue(deleted)).rejects.toMatchObject({ code: 'sandbox-not-found' });
    expect(await store.identities.setNext(deleted.id, hex(), hour)).toBe(false);
    expect(await store.identities.setRevoked(deleted.id, true)).toBe(false);
  });

  it('I-11: a registration that is concurrent with the destruction leaves nothing', async () => {
    for (let i = 0; i < 10; i++) {
      const start = await issue(await box());
      await Promise.all([register(start), destroy(start.row.id), store.views.put([emptyView(start.row.id)], [])]);
      expect(await store.identities.find(start.thumbprint)).toBeUndefined();
      expect(await store.identities.bearer(start.hash)).toBeUndefined();
      expect((await store.views.get([start.row.id])).size).toBe(0);
    }
  });

  it('I-11: an evicted sandbox can register again only at its next start', async () => {
    const start = await registered();
    expect(await store.identities.evict(start.row.id, 'evicted')).toMatchObject({ thumbprint: start.thumbprint });
    expect(await store.identities.evict(start.row.id, 'evicted')).toBeUndefined();
    expect(await register(start)).toEqual(refused('token'));
    const { row, thumbprint } = start;
    expect(await store.identities.issueAgain({ hash: hex(), sandboxId: row.id, thumbprint, expiresAt: hour })).toBe(false);
    await runs(row, 1n);
    expect(await register(await issue(row))).toMatchObject({ kind: 'welcome', again: false });
    expect(await events(row.id)).toEqual(['AgentRegistered', 'IdentityEvicted evicted', 'AgentRegistered']);
  });

  it('I-4: a revoked sandbox does not register, at this start or the next, until it is reinstated', async () => {
    const start = await registered();
    const { row, thumbprint } = start;
    expect(await store.identities.setRevoked(row.id, true)).toBe(true);
    expect(await store.identities.setRevoked(row.id, true)).toBe(false);
    expect(await store.sandboxes.get(row.id)).toMatchObject({ revokedAt: clock.now() });
    expect(await store.identities.findBySandbox(row.id)).toBeUndefined();
    for (const one of [start, await issue(row)]) expect(await register(one)).toEqual(refused('revoked'));
    const again = { sandboxId: row.id, thumbprint, expiresAt: hour };
    expect(await store.identities.issueAgain({ ...again, hash: hex() })).toBe(false);

    expect(await store.identities.setRevoked(row.id, false)).toBe(true);
    expect(await store.identities.setRevoked(row.id, false)).toBe(false);
    // The earlier certificate may register with a replacement token.
    expect(await register(start)).toEqual(refused('token'));
    const [lost, hash] = [hex(), hex()];
    expect(await store.identities.issueAgain({ ...again, hash: lost })).toBe(true);
    expect(await store.identities.issueAgain({ ...again, hash })).toBe(true);
    expect(await register(start, { hash: lost })).toEqual(refused('token'));
    // A replacement token is not the token that was issued with the certificate.
    expect(await mayRegister(start)).toBe(false);
    expect(await store.identities.bearer(hash)).toEqual({ sandboxId: row.id, thumbprint, scope: 'register' });
    expect(await register(start, { hash })).toMatchObject({ kind: 'welcome', again: false });
    expect(await store.identities.issueAgain({ ...again, hash: hex() })).toBe(false);
    // I-34: one AgentRegistered per start, however often it registers.
    expect(await events(row.id)).toEqual(['AgentRegistered', 'IdentityEvicted revoked', 'IdentityRevoked', 'IdentityReinstated']);
  });

  it('I-4: after a renewal and a revocation, either certificate may register again, and no other', async () => {
    for (const holdsNext of [true, false]) {
      const { row, thumbprint } = await registered();
      const next = hex();
      await store.identities.setNext(row.id, next, hour);
      await store.identities.setRevoked(row.id, true);
      await store.identities.setRevoked(row.id, false);
      const again = { sandboxId: row.id, hash: hex(), expiresAt: hour };
      expect(await store.identities.issueAgain({ ...again, thumbprint: hex() })).toBe(false);
      const held = holdsNext ? next : thumbprint;
      expect(await store.identities.issueAgain({ ...again, thumbprint: held })).toBe(true);
      expect(await register({ row, thumbprint: held, hash: again.hash })).toMatchObject({ kind: 'welcome', again: false });
    }
  });

  it('I-4: a sandbox that was started while revoked registers with its own token once it is reinstated', async () => {
    const row = await box();
    await store.identities.setRevoked(row.id, true);
    const start = await issue(row);
    expect(await register(start)).toEqual(refused('revoked'));
    await store.identities.setRevoked(row.id, false);
    expect(await mayRegister(start)).toBe(true);
    // The certificate already has an unspent token.
    const { thumbprint } = start;
    expect(await store.identities.issueAgain({ hash: hex(), sandboxId: row.id, thumbprint, expiresAt: hour })).toBe(false);
    expect(await register(start)).toMatchObject({ kind: 'welcome', again: false });
  });

  it('I-12: an identity is an orphan if its sandbox is deleted or unknown, not if it is stopped', async () => {
    const host = await readyHost(store);
    const [stopped, lost] = [await registered(), await registered()];
    await store.sandboxes.place(stopped.row.id, host.id);
    await store.sandboxes.observe(host.id, host.epoch, [seen(stopped.row, 'STOPPED')]);
    expect(await store.identities.orphans()).toEqual([]);
    for (const table of ['sandbox_views where sandbox_id', 'sandboxes where id'])
      await stores.run(url, `delete from ${table} = '${lost.row.id}'`);
    expect(await store.identities.orphans()).toEqual([lost.row.id]);
    expect(await store.identities.evict(lost.row.id, 'reaped')).toMatchObject({ thumbprint: lost.thumbprint });
    expect(await store.identities.orphans()).toEqual([]);
    expect((await store.views.get([lost.row.id])).size).toBe(0);
  });

  it('I-34: a registration counts for the start that the host reports', async () => {
    const host = await readyHost(store);
    const row = await box();
    await store.sandboxes.place(row.id, host.id);
    const starts: unknown[] = [];
    for (const [state, startCount, sequence] of [
      ['STARTING', 0n, 1n],
      ['RUNNING', 1n, 2n],
      ['STARTING', 1n, 3n],
    ] as const) {
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, state, { startCount, sequence })]);
      await register(await issue(row));
      starts.push((await store.events.after(0, 1000, { subject: row.id, kinds: ['identity'] })).at(-1)?.data['startCount']);
    }
    expect(starts).toEqual([1, 1, 2]);
  });

  describe('views (I-35)', () => {
    const view = (id: SandboxId, lastError = ''): SandboxView => ({ ...emptyView(id), session: { ...emptyView(id).session, lastError } });

    it('I-35: are written with their events, the last one per sandbox, and read by id', async () => {
      const [a, b] = [await box(), await box()];
      const draftOf = (subject: string): Parameters<Store['views']['put']>[1][number] => ({
        kind: 'session',
        type: 'X',
        subject,
        data: {},
      });
      await store.views.put([view(a.id, 'one'), view(b.id, 'two'), view(a.id, 'three')], [draftOf(a.id), draftOf(b.id)]);
      await store.views.put([view(b.id, 'four')], []);
      expect(await store.views.get([a.id, b.id, newSandboxId()])).toMatchObject(
        new Map([
          [a.id, { session: { lastError: 'three' } }],
          [b.id, { session: { lastError: 'four' } }],
        ]),
      );
      expect((await store.events.after(0, 100, { kinds: ['session'] })).map((event) => event.subject)).toEqual([a.id, b.id]);
    });

    it('I-35: include every change of the registry immediately', async () => {
      const { row } = await registered();
      const verdict = async (): Promise<string | undefined> => (await store.views.get([row.id])).get(row.id)?.identity.verdict;
      expect(await verdict()).toBe('trusted');
      await store.identities.setRevoked(row.id, true);
      expect(await verdict()).toBe('revoked');
    });

    it('I-35: lose nothing when two transactions concurrently read and change the same view', async () => {
      const row = await box();
      const add = async (): Promise<void> =>
        await store.together(async ({ views }) => {
          const was = (await views.get([row.id], { lock: true })).get(row.id) ?? view(row.id);
          await views.put([view(row.id, `${was.session.lastError}x`)], []);
        });
      await Promise.all(Array.from({ length: 12 }, add));
      expect((await store.views.get([row.id])).get(row.id)?.session.lastError).toBe('x'.repeat(12));
    });
  });

  describe('containment (I-4)', () => {
    it('I-4: a network cut raises the generation, and is observed', async () => {
      const host = await readyHost(store);
      const row = await box();
      await store.sandboxes.place(row.id, host.id);
      expect(await store.sandboxes.setNetworkCut(row.id, true)).toMatchObject({
        networkCut: true,
        observedNetworkCut: false,
        generation: 2,
      });
      expect(await store.sandboxes.setNetworkCut(row.id, true)).toMatchObject({ generation: 2 });
      await store.sandboxes.observe(host.id, host.epoch, [seen({ ...row, generation: 2 }, 'RUNNING', { networkCut: true })]);
      expect(await store.sandboxes.get(row.id)).toMatchObject({ networkCut: true, observedNetworkCut: true, observed: 'running' });
      expect(await store.sandboxes.setNetworkCut(row.id, false)).toMatchObject({
        networkCut: false,
        observedNetworkCut: true,
        generation: 3,
      });
      const wishes = (await store.events.after(0, 100, { subject: row.id })).filter(({ type }) => type === 'SandboxDesiredChanged');
      expect(wishes.map(({ data }) => data['networkCut'])).toEqual([true, false]);
      await expect(store.sandboxes.setNetworkCut(newSandboxId(), true)).rejects.toMatchObject({ code: 'sandbox-not-found' });
    });
  });

  describe('an init plan that failed (I-30)', () => {
    const running = async (): Promise<{ readonly host: Awaited<ReturnType<typeof readyHost>>; readonly row: SandboxRow }> => {
      const host = await readyHost(store);
      const { id } = await box();
      await store.sandboxes.place(id, host.id);
      const row = await store.sandboxes.get(id);
      if (row === undefined) throw new Error('the sandbox does not exist');
      return { host, row };
    };

    it('I-30: fails the sandbox, even if its copy still runs', async () => {
      const { host, row } = await running();
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STARTING', { startCount: 0n, sequence: 1n })]);
      expect(await store.sandboxes.failInit(row.id, 1, 'step git: exit code 128')).toBe(true);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING', { sequence: 2n })]);
      expect(await store.sandboxes.get(row.id)).toMatchObject({
        observed: 'failed',
        reason: 'init-failed',
        message: 'step git: exit code 128',
      });
      // A second failure has no effect.
      expect(await store.sandboxes.failInit(row.id, 1, 'again')).toBe(false);
    });

    it('I-30: changes nothing if the plan belongs to another start', async () => {
      const { host, row } = await running();
      expect(await store.sandboxes.failInit(row.id, 1, 'too early')).toBe(false);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'RUNNING', { sequence: 1n, startCount: 2n })]);
      for (const start of [0, 1, 3]) expect(await store.sandboxes.failInit(row.id, start, 'another')).toBe(false);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STARTING', { sequence: 2n, startCount: 2n })]);
      expect(await store.sandboxes.failInit(row.id, 2, 'the one before')).toBe(false);
      expect(await store.sandboxes.get(row.id)).toMatchObject({ observed: 'starting', reason: '' });
    });

    it('I-30: does not replace the outcome of a sandbox that has ended or is to be started again', async () => {
      const { host, row } = await running();
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STOPPED', { sequence: 1n, reason: 'exited', exitCode: 3 })]);
      expect(await store.sandboxes.failInit(row.id, 1, 'late')).toBe(false);
      await store.sandboxes.setDesired(row.id, 'running');
      expect(await store.sandboxes.failInit(row.id, 1, 'late')).toBe(false);
      expect(await store.sandboxes.get(row.id)).toMatchObject({ observed: 'stopped', exitCode: undefined, startGeneration: 2 });
      expect(await store.sandboxes.failInit(newSandboxId(), 1, 'unknown')).toBe(false);
    });
  });

  it('R-2: the migration of an older database finds sandboxes with --rm, and creates no identities', async () => {
    const host = await readyHost(store);
    const [removed, kept] = [
      await box({ spec: { removeOnExit: true } }),
      await box({ spec: { env: [{ name: 'X', value: '"removeOnExit":true' }] } }),
    ];
    for (const row of [removed, kept]) {
      await store.sandboxes.place(row.id, host.id);
      await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STOPPED')]);
    }
    await stores.closeAll();
    // The state that the previous version left.
    for (const statement of [
      'drop index sandboxes_to_remove',
      ...['network_cut', 'observed_network_cut', 'revoked_at', 'containment', 'observed_registration_closed', 'remove_on_exit'].map(
        (name) => `alter table sandboxes drop column ${name}`,
      ),
      ...['identities', 'sandbox_certificates', 'sandbox_tokens', 'sandbox_views'].map((name) => `drop table ${name}`),
      `delete from drover_migrations where name in ('004-identities', '005-containment')`,
    ]) {
      await stores.run(url, statement);
    }
    store = await stores.open({ url, clock });
    expect((await store.sandboxes.finished(clock.now())).map((row) => row.id)).toEqual([removed.id]);
    expect(await store.sandboxes.get(kept.id)).toMatchObject({ networkCut: false, observedNetworkCut: false, revokedAt: undefined });
    expect(await register(await issue(kept))).toMatchObject({ kind: 'welcome' });
  });
});
