import { randomBytes } from 'node:crypto';
import { createClient, type Client } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { canonicalCommonName, DroverError, FakeClock, type SandboxId } from '@drover/foundation';
import { api as wire, sandbox } from '@drover/protocol';
import { killGraceMs } from '@drover/spec';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { SandboxEvent } from '../events/typed.ts';
import { containWaitMs, worldviewPage } from '../limits.ts';
import { draft } from '../store/testing/fixtures.ts';
import { TestStores } from '../store/testing/stores.ts';
import { startTestApi, type TestApi } from './testing/server.ts';

const { RUNNING, PAUSED, STOPPED } = sandbox.SandboxState;
const verdicts = new Map<number, string>(Object.entries(wire.TrustCheck_Verdict).map(([word, value]) => [value, word]));
const hex = (): string => randomBytes(32).toString('hex');

async function errorOf(promise: Promise<unknown>): Promise<DroverError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof DroverError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

/** Registers a new certificate for the sandbox; gives its thumbprint. */
async function register(api: TestApi, reference: string): Promise<string> {
  const { id: sandboxId, project, name } = await api.store.sandboxes.find(reference);
  const [thumbprint, hash] = [hex(), hex()];
  await api.store.identities.issue({ hash, sandboxId, thumbprint, requestHash: hex(), expiresAt: Date.now() + 60_000 });
  const outcome = await api.store.identities.register({
    sandboxId,
    thumbprint,
    project,
    name,
    commonName: canonicalCommonName(project, name),
    tokenHash: hash,
    accessTokenHash: hex(),
  });
  expect(outcome.kind).toBe('welcome');
  return thumbprint;
}

/** Its session stands, with the peer that was registered. */
async function connected(api: TestApi, id: string, thumbprint: string): Promise<void> {
  const say = (event: Pick<SandboxEvent, 'kind' | 'type' | 'data'>): void =>
    api.worldview.publish({ ...event, subject: id } as SandboxEvent);
  say({
    kind: 'session',
    type: 'SessionConnected',
    data: { attempts: 2, peerCommonName: 'box', thumbprint, address: '10.0.0.2', bootId: 'b' },
  });
  say({ kind: 'identity', type: 'AgentTrusted', data: { thumbprint } });
  say({ kind: 'init', type: 'InitCompleted', data: { count: 5, durationMs: 3, startCount: 1 } });
  await api.worldview.flush();
}

/** A sandbox that runs on a connected host, is registered and has a session. */
async function runs(api: TestApi, name = 'box'): Promise<{ readonly id: SandboxId; readonly thumbprint: string; readonly hostId: Host }> {
  const hostId = await api.addHost(`host-of-${name}`);
  const made = await api.client.sandboxes.create({ name, spec: { image: 'host', host: hostId } });
  const id = made.id as SandboxId;
  await api.observe(hostId, id, { state: RUNNING, address: '10.0.0.2' });
  const thumbprint = await register(api, id);
  await connected(api, id, thumbprint);
  return { id, thumbprint, hostId };
}
type Host = Awaited<ReturnType<TestApi['addHost']>>;

/** The service without the client library: with the idempotency keys of the test. */
function raw(api: TestApi): Client<typeof wire.SandboxService> {
  const transport = createConnectTransport({
    baseUrl: api.url,
    httpVersion: '2',
    nodeOptions: { ca: api.ca.caPem },
    interceptors: [
      (next) => async (call) => {
        call.header.set('authorization', `Bearer ${api.token}`);
        return await next(call);
      },
    ],
  });
  return createClient(wire.SandboxService, transport);
}

const resultsOf = ({ results }: wire.ContainSandboxResponse): [string, boolean, string][] =>
  results.map(({ action, done, message }) => [action, done, message]);

describe.each(['sqlite', 'postgres'] as const)('on a store of %s', (kind) => {
  const stores = new TestStores(kind);
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  const start = async (): Promise<TestApi> => await startTestApi({ storeUrl: await stores.newUrl() });

  describe('what a person sees of a sandbox', () => {
    test('I-35: session, identity and init, where it is shown and where it is listed', async () => {
      await using api = await start();
      const { id, thumbprint } = await runs(api);
      await api.client.sandboxes.create({ name: 'other', spec: { image: 'host' } });
      const expected = {
        session: {
          state: 'connected',
          attempts: 2,
          lastError: '',
          peerCommonName: 'box',
          peerThumbprint: thumbprint,
          peerAddress: '10.0.0.2',
        },
        identity: { verdict: 'trusted', reason: '', thumbprint, commonName: 'box' },
        init: { state: 'completed' },
        containment: { networkCut: false, paused: false, killed: false, revoked: false },
      };
      const shown = await api.client.sandboxes.get('box');
      expect(shown).toMatchObject(expected);
      expect(shown.identity?.registeredAt).toBeDefined();
      const [listed, other] = await api.client.sandboxes.list();
      expect(listed).toEqual(shown);
      expect(other).toMatchObject({
        session: { state: 'none' },
        identity: { verdict: 'unknown', thumbprint: '' },
        init: { state: 'none' },
      });
      expect(id).toBe(shown.id);
    });

    test('I-30: init at a step, and failed with the end of its stderr', async () => {
      await using api = await start();
      const { id } = await runs(api);
      const place = { step: 'post-init', index: 4, count: 5 };
      api.worldview.publish({ kind: 'init', type: 'InitStarted', subject: id, data: { count: 5, startCount: 1 } });
      api.worldview.publish({ kind: 'init', type: 'InitStepStarted', subject: id, data: place });
      await api.worldview.flush();
      expect((await api.client.sandboxes.get(id)).init).toMatchObject({ state: 'running', step: 4, count: 5, stepName: 'post-init' });
      const failure = { reason: 'exit-code', message: 'it failed', exitCode: 3, stderr: 'make: no rule' } as const;
      api.worldview.publish({ kind: 'init', type: 'InitFailed', subject: id, data: { ...place, ...failure, startCount: 1 } });
      await api.worldview.flush();
      expect((await api.client.sandboxes.get(id)).init).toMatchObject({
        state: 'failed',
        step: 4,
        stepName: 'post-init',
        reason: 'exit-code',
        exitCode: 3,
        stderr: 'make: no rule',
      });
    });

    test('what has ended or is paused, or is cut off with its host, has no session that stands', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const { epoch } = await api.store.hosts.find(hostId);
      await api.store.hosts.markDown(hostId, epoch, 'silent');
      expect((await api.client.sandboxes.get(id)).session).toMatchObject({
        state: 'broken',
        lastError: 'its host host-of-box is not connected',
      });
      const { id: frozen, hostId: host } = await runs(api, 'frozen');
      await api.observe(host, frozen, { state: PAUSED });
      expect(await api.client.sandboxes.get(frozen)).toMatchObject({ session: { state: 'none' }, identity: { verdict: 'trusted' } });
      const { id: ended, hostId: itsHost } = await runs(api, 'ended');
      await api.observe(itsHost, ended, { state: STOPPED, exitCode: 0 });
      expect(await api.client.sandboxes.get(ended)).toMatchObject({ session: { state: 'none' }, identity: { verdict: 'trusted' } });
    });

    test('a session that is lost is shown, and its sandbox is not called trusted meanwhile', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const data = { attempts: 9, reason: 'unreachable', message: 'nobody answers' };
      api.worldview.publish({ kind: 'session', type: 'SessionFailed', subject: id, data });
      await api.worldview.flush();
      const lost = {
        session: { state: 'failed', lastError: 'nobody answers' },
        identity: { verdict: 'unknown', reason: 'session-lost', message: expect.stringContaining('nobody answers') },
      };
      expect(await api.client.sandboxes.get(id)).toMatchObject(lost);
      expect((await api.client.sandboxes.explain(id)).sandbox).toMatchObject(lost);
      await api.observe(hostId, id, { state: STOPPED, exitCode: 0 });
      expect(await api.client.sandboxes.get(id)).toMatchObject({ session: { state: 'none' }, identity: { verdict: 'trusted' } });
    });

    test('I-11: a new start has an init of its own, and one that was evicted is not called trusted', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      await api.observe(hostId, id, { state: RUNNING, startCount: 2n });
      expect((await api.client.sandboxes.get(id)).init?.state).toBe('none');
      await api.store.identities.evict(id, 'evicted');
      expect((await api.client.sandboxes.get(id)).identity).toMatchObject({ verdict: 'unknown', thumbprint: '' });
    });

    test('I-30: who waits for one whose init plan failed, or attaches to it, is told of the step', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const waiting = errorOf(api.client.sandboxes.waitFor(id, ['stopped']));
      const attached = errorOf(api.client.sandboxes.exec(id, { execId: 'main', argv: [] }).exit);
      const message = 'init step post-init failed with exit code 3: make — no rule to make "all"';
      expect(await api.store.sandboxes.failInit(id, 1, message)).toBe(true);
      // The copy is stopped for it; how that ended is no answer.
      await api.observe(hostId, id, { state: STOPPED, exitCode: 137 });
      for (const error of [await waiting, await attached]) {
        expect(error.message).toBe(`sandbox box failed: ${message}`);
        expect(error.code).toBe('sandbox-not-running');
      }
    });
  });

  describe('explaining', () => {
    test('every check is there: those that were made, those that can be made now, and those that never were', async () => {
      await using api = await start();
      const { id } = await runs(api);
      const at = Date.now();
      api.worldview.record(id, [
        { check: 'chain', verdict: 'pass', evidence: 'issued by the CA', at, source: 'session' },
        { check: 'cn', verdict: 'fail', evidence: 'it says "evil"', at, source: 'register' },
      ]);
      await api.worldview.flush();
      const { sandbox: shown, checks } = await api.client.sandboxes.explain('box');
      expect(shown?.id).toBe(id);
      const told = checks.map(({ check, verdict, source }) => [check, verdicts.get(verdict), source]);
      expect(told).toEqual([
        ['chain', 'PASS', 'session'],
        ['validity', 'UNKNOWN', ''],
        ['eku', 'UNKNOWN', ''],
        ['cn', 'FAIL', 'register'],
        ['san', 'UNKNOWN', ''],
        ['thumbprint', 'PASS', 'now'],
        ['registry', 'PASS', 'now'],
        ['host', 'PASS', 'now'],
        ['peer-address', 'PASS', 'now'],
      ]);
      expect(checks.every(({ evidence }) => evidence !== '')).toBe(true);
      expect((await errorOf(api.client.sandboxes.explain('nobody'))).code).toBe('sandbox-not-found');
    });
  });

  describe('identities', () => {
    test('I-10: are listed by project and name, and found by sandbox or thumbprint', async () => {
      await using api = await start();
      for (const [project, name] of [
        ['b', 'one'],
        ['', 'two'],
        ['a', 'three'],
      ] as const) {
        await api.client.sandboxes.create({ project, name, spec: { image: 'host' } });
        await register(api, project === '' ? name : `${project}/${name}`);
      }
      const all = await api.client.identities.list();
      expect(all.map(({ commonName }) => commonName)).toEqual(['two', 'a.three', 'b.one']);
      const [two] = all;
      for (const reference of ['two', two?.sandboxId ?? '', two?.thumbprint ?? '', two?.thumbprint.toUpperCase() ?? '']) {
        expect(await api.client.identities.get(reference)).toEqual(two);
      }
    });

    test('one that is not there is not found: no sandbox, none registered, no such thumbprint', async () => {
      await using api = await start();
      await api.client.sandboxes.create({ name: 'fresh', spec: { image: 'host' } });
      const messages: string[] = [];
      for (const reference of ['nobody', 'fresh', hex()]) {
        const error = await errorOf(api.client.identities.get(reference));
        expect([error.code, error.exitCode, error.hint === undefined]).toEqual(['sandbox-not-found', 3, false]);
        messages.push(error.message);
      }
      expect(messages[1]).toContain('fresh is not in the registry');
      expect(new Set(messages).size).toBe(3);
    });

    test('I-11: an evicted one is gone, its session greeted anew; the event is stored with it', async () => {
      await using api = await start();
      const { id, thumbprint } = await runs(api);
      expect((await api.client.identities.evict('box')).thumbprint).toBe(thumbprint);
      expect(await api.client.identities.list()).toEqual([]);
      await vi.waitFor(() => expect(api.sessions.redialled).toEqual([id]));
      expect((await api.store.events.after(0, 100, { kinds: ['identity'] })).at(-1)).toMatchObject({
        type: 'IdentityEvicted',
        subject: id,
        data: { thumbprint, why: 'evicted' },
      });
      expect((await errorOf(api.client.identities.evict('box'))).code).toBe('sandbox-not-found');
    });
  });

  describe('I-4: containing', () => {
    test('answers when the host has done it', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const contained = api.client.sandboxes.contain('box', ['cut-network', 'pause']);
      await until(api, id, (row) => row.networkCut && row.desired === 'paused');
      await api.observe(hostId, id, { state: PAUSED, networkCut: true });
      const answer = await contained;
      expect(resultsOf(answer)).toEqual([
        ['cut-network', true, expect.stringContaining('cut')],
        ['pause', true, 'it is paused'],
      ]);
      expect(answer.sandbox?.containment).toMatchObject({ networkCut: true, paused: true, killed: false, revoked: false });
      expect((await api.store.events.after(0, 100)).some(({ type }) => type === 'SandboxDesiredChanged')).toBe(true);
    });

    test('a kill is a stop without grace, and its undoing a start with the spec’s own', async () => {
      await using api = await start();
      const hostId = await api.addHost('alpha');
      const { id } = await api.client.sandboxes.create({ name: 'box', spec: { image: 'host', stopGraceMs: 5_000 } });
      await api.observe(hostId, id, { state: RUNNING });
      const killing = api.client.sandboxes.contain('box', ['kill', 'pause']);
      const killed = await until(api, id as SandboxId, (row) => row.desired === 'stopped');
      expect(killed.stopGraceMs).toBe(killGraceMs);
      await api.observe(hostId, id, { state: STOPPED, exitCode: 137 });
      expect(resultsOf(await killing)).toEqual([
        ['pause', true, 'it is killed, and stays stopped until the pause is released too'],
        ['kill', true, 'it is stopped'],
      ]);
      const releasing = api.client.sandboxes.release('box');
      const released = await until(api, id as SandboxId, (row) => row.desired === 'running');
      expect(released.stopGraceMs).toBe(5_000);
      await api.observe(hostId, id, { state: RUNNING, startCount: 2n });
      const answer = await releasing;
      expect(resultsOf(answer)).toEqual([
        ['pause', true, 'it is killed too'],
        ['kill', true, 'it runs'],
      ]);
      expect(answer.sandbox?.containment).toMatchObject({ killed: false, paused: false });
    });

    test('a pause beside a kill outlives the release of the kill', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const contained = api.client.sandboxes.contain('box', ['kill', 'pause']);
      await until(api, id, (row) => row.desired === 'stopped');
      await api.observe(hostId, id, { state: STOPPED, exitCode: 137 });
      await contained;
      const answer = await api.client.sandboxes.release('box', ['kill']);
      expect(resultsOf(answer)).toEqual([['kill', true, 'it stays stopped: a pause contains it too']]);
      expect((await errorOf(api.client.sandboxes.start('box'))).code).toBe('failed-precondition');
    });

    test('a pause of a stopped sandbox keeps it from starting until it is released', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      await api.client.sandboxes.stop('box');
      await api.observe(hostId, id, { state: STOPPED, exitCode: 0 });
      const answer = await api.client.sandboxes.contain('box', ['pause']);
      expect(resultsOf(answer)).toEqual([['pause', true, 'it is not running, and does not start until it is released']]);
      expect(answer.sandbox?.containment).toMatchObject({ paused: true });
      const refused = await errorOf(api.client.sandboxes.start('box'));
      expect([refused.code, refused.hint]).toEqual(['failed-precondition', expect.stringContaining('release')]);
      await api.client.sandboxes.release('box');
      expect((await api.client.sandboxes.start('box')).desiredState).toBe((await api.client.sandboxes.get('box')).desiredState);
    });

    test('revoked: nothing registers any more, and its session is greeted anew; so again when that is lifted', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const revoking = api.client.sandboxes.contain('box', ['revoke']);
      await until(api, id, (row) => row.revokedAt !== undefined);
      await api.observe(hostId, id, { state: RUNNING, registrationClosed: true });
      const answer = await revoking;
      expect(resultsOf(answer)).toEqual([['revoke', true, expect.stringContaining('revoked')]]);
      expect(answer.sandbox).toMatchObject({ identity: { verdict: 'revoked', thumbprint: '' }, containment: { revoked: true } });
      expect(await api.client.identities.list()).toEqual([]);
      await vi.waitFor(() => expect(api.sessions.redialled).toEqual([id]));
      const registry = (await api.client.sandboxes.explain('box')).checks.find(({ check }) => check === 'registry');
      expect(registry).toMatchObject({ verdict: wire.TrustCheck_Verdict.FAIL, evidence: expect.stringContaining('revoked') });
      const [thumbprint, hash] = [hex(), hex()];
      await api.store.identities.issue({ hash, sandboxId: id, thumbprint, requestHash: hex(), expiresAt: Date.now() + 60_000 });
      const names = await api.store.sandboxes.find(id);
      const claim = {
        sandboxId: id,
        thumbprint,
        project: names.project,
        name: names.name,
        commonName: 'box',
        tokenHash: hash,
        accessTokenHash: hex(),
      };
      expect(await api.store.identities.register(claim)).toMatchObject({ kind: 'refused', why: 'revoked' });

      const releasing = api.client.sandboxes.release('box', ['revoke']);
      await until(api, id, (row) => row.revokedAt === undefined);
      await api.observe(hostId, id, { state: RUNNING });
      expect(resultsOf(await releasing)).toEqual([['revoke', true, 'it may register again']]);
      await vi.waitFor(() => expect(api.sessions.redialled).toEqual([id, id]));
      expect(await api.store.identities.register(claim)).toMatchObject({ kind: 'welcome' });
    });

    test('a host that is not connected does it when it is back, and the answer does not wait for it', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const { epoch } = await api.store.hosts.find(hostId);
      await api.store.hosts.markDown(hostId, epoch, 'silent');
      const answer = await api.client.sandboxes.contain('box', ['cut-network', 'pause', 'revoke']);
      expect(resultsOf(answer)).toEqual([
        ['cut-network', false, expect.stringMatching(/host-of-box is not connected.*takes effect when the host reconnects/)],
        ['pause', false, expect.stringContaining('not connected')],
        ['revoke', false, expect.stringMatching(/identity is revoked.*not connected/)],
      ]);
      expect(await api.store.sandboxes.get(id)).toMatchObject({ networkCut: true, desired: 'paused', revokedAt: expect.any(Number) });
    });

    test('a host that is connected and does not do it is waited for no longer than a bounded time', async () => {
      const clock = new FakeClock(Date.now());
      await using api = await startTestApi({ storeUrl: await stores.newUrl(), clock });
      const { id } = await runs(api);
      const began = clock.now();
      let answer: wire.ContainSandboxResponse | undefined;
      const contained = api.client.sandboxes.contain('box', ['cut-network']).then((got) => (answer = got));
      await until(api, id, (row) => row.networkCut);
      while (answer === undefined) await clock.advance(containWaitMs / 40);
      await contained;
      expect(resultsOf(answer)).toEqual([['cut-network', false, expect.stringContaining('host-of-box has not done it yet')]]);
      expect(clock.now() - began).toBeGreaterThanOrEqual(containWaitMs);
      expect((await api.store.sandboxes.get(id))?.networkCut).toBe(true);
    });

    test('what the host does, and that it goes away, is known when it happens: nobody looks on a clock', async () => {
      const clock = new FakeClock(Date.now());
      await using api = await startTestApi({ storeUrl: await stores.newUrl(), clock });
      const { id, hostId } = await runs(api);
      const cut = api.client.sandboxes.contain('box', ['cut-network']);
      await until(api, id, (row) => row.networkCut);
      await api.observe(hostId, id, { state: RUNNING, networkCut: true });
      expect(resultsOf(await cut)).toEqual([['cut-network', true, expect.stringContaining('is cut')]]);

      const restored = api.client.sandboxes.release('box');
      await until(api, id, (row) => !row.networkCut);
      await api.store.hosts.markDown(hostId, (await api.store.hosts.get(hostId))?.epoch ?? 0, 'the stream dropped');
      expect(resultsOf(await restored)).toEqual([['cut-network', false, expect.stringContaining('not connected')]]);
    });

    test('a stop whose own grace is that of a kill is no kill', async () => {
      await using api = await start();
      const hostId = await api.addHost('alpha');
      const { id } = await api.client.sandboxes.create({ name: 'box', spec: { image: 'host', stopGraceMs: killGraceMs } });
      await api.observe(hostId, id, { state: RUNNING });
      expect((await api.client.sandboxes.stop('box')).containment?.killed).toBe(false);
      // It takes its time, and is killed meanwhile.
      const killing = api.client.sandboxes.contain('box', ['kill']);
      await until(api, id as SandboxId, (row) => row.containment.kill !== undefined);
      await api.observe(hostId, id, { state: STOPPED, exitCode: 137 });
      expect((await killing).sandbox?.containment?.killed).toBe(true);
    });

    test('of one that has stopped, each action says what it is worth', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      await api.observe(hostId, id, { state: STOPPED, exitCode: 0 });
      const answer = await api.client.sandboxes.contain('box', ['cut-network', 'pause']);
      expect(resultsOf(answer)).toEqual([
        ['cut-network', true, expect.stringContaining('from the first packet on')],
        ['pause', true, expect.stringContaining('not running')],
      ]);
      expect(resultsOf(await api.client.sandboxes.contain('box', ['kill']))).toEqual([['kill', true, 'it is stopped']]);
    });

    test('without an action, of one that is not there or deleted, it is one clear sentence', async () => {
      await using api = await start();
      const nothing = await errorOf(
        raw(api)
          .containSandbox({ sandbox: 'box' })
          .catch((error: unknown) => Promise.reject(DroverError.from(error))),
      );
      expect(nothing.message).toContain('names no way');
      expect((await errorOf(api.client.sandboxes.contain('nobody', ['kill']))).code).toBe('sandbox-not-found');
      const { id } = await api.client.sandboxes.create({ name: 'box', spec: { image: 'host' } });
      await api.client.sandboxes.remove(id);
      expect((await errorOf(api.client.sandboxes.contain(id, ['kill']))).message).toContain('deleted');
    });

    test('to release what is not contained changes nothing, and one that ended while it was paused is not started', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const before = await api.store.sandboxes.get(id);
      expect(resultsOf(await api.client.sandboxes.release('box'))).toEqual([]);
      expect(resultsOf(await api.client.sandboxes.release('box', ['pause', 'kill']))).toEqual([
        ['pause', true, 'it was not in force'],
        ['kill', true, 'it was not in force'],
      ]);
      expect((await api.store.sandboxes.get(id))?.generation).toBe(before?.generation);
      const pausing = api.client.sandboxes.contain('box', ['pause']);
      await until(api, id, (row) => row.desired === 'paused');
      await api.observe(hostId, id, { state: STOPPED, exitCode: 1 });
      await pausing;
      expect(resultsOf(await api.client.sandboxes.release('box'))).toEqual([['pause', true, 'it has ended meanwhile']]);
      expect(await api.store.sandboxes.get(id)).toMatchObject({ desired: 'stopped', observed: 'stopped' });
    });

    test('L-20: repeated with its key, it undoes nothing that was done in between', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      await api.observe(hostId, id, { state: STOPPED });
      const client = raw(api);
      const contain = { idempotencyKey: 'contain', sandbox: 'box', actions: { revoked: true } };
      expect((await client.containSandbox(contain)).results).toMatchObject([{ action: 'revoke', done: true }]);
      expect((await client.releaseSandbox({ idempotencyKey: 'release', sandbox: 'box' })).results).toMatchObject([{ done: true }]);
      const repeated = await client.containSandbox(contain);
      expect(repeated.results).toMatchObject([{ action: 'revoke', done: false, message: 'it was undone meanwhile' }]);
      expect((await api.store.sandboxes.get(id))?.revokedAt).toBe(undefined);
    });

    test('nothing but a release lets it run again, and the refusal says who contained it, when and why', async () => {
      const clock = new FakeClock(Date.parse('2026-01-02T03:04:05Z'));
      await using api = await startTestApi({ storeUrl: await stores.newUrl(), clock });
      const { id, hostId } = await runs(api);
      const pausing = api.client.sandboxes.contain('box', ['pause'], { reason: 'phones home' });
      await until(api, id, (row) => row.desired === 'paused');
      await api.observe(hostId, id, { state: PAUSED });
      expect((await pausing).sandbox?.containment?.records).toMatchObject([{ action: 'pause', by: 'admin', reason: 'phones home' }]);
      const refusal = {
        code: 'failed-precondition',
        message: 'sandbox box is contained: it is paused, by admin at 2026-01-02T03:04:05.000Z: phones home',
        hint: '`drover sandbox release box` lifts that',
      };
      expect(await errorOf(api.client.sandboxes.resume('box'))).toMatchObject(refusal);
      expect(await errorOf(api.client.sandboxes.exec('box', { argv: ['ls'] }).exit)).toMatchObject(refusal);
      // The first containment stands; a later reason is added to it.
      await api.client.sandboxes.contain('box', ['pause'], { reason: 'sends spam' });
      await api.client.sandboxes.contain('box', ['pause']);
      expect((await api.store.sandboxes.get(id))?.containment.pause).toMatchObject({ at: clock.now(), reason: 'sends spam' });

      await api.client.sandboxes.stop('box');
      expect((await errorOf(api.client.sandboxes.start('box'))).message).toContain('it is paused');
      await api.observe(hostId, id, { state: STOPPED });
      expect((await errorOf(api.client.sandboxes.start('box'))).message).toContain('it is paused');
      await api.client.sandboxes.contain('box', ['kill'], { reason: 'again' });
      expect((await errorOf(api.client.sandboxes.start('box'))).message).toMatch(/it is paused.*; it is killed, .*again/);

      expect(resultsOf(await api.client.sandboxes.release('box', ['kill']))).toEqual([['kill', true, expect.stringContaining('a pause')]]);
      expect(resultsOf(await api.client.sandboxes.release('box'))).toEqual([['pause', true, 'it was stopped meanwhile']]);
      expect((await api.client.sandboxes.get('box')).containment?.records).toEqual([]);
      expect(await api.client.sandboxes.start('box')).toMatchObject({ containment: { killed: false, paused: false } });
      const events = (await api.store.events.after(0, 100, { subject: id })).filter(({ type }) => /Contained|Released/.test(type));
      expect(events.map(({ type, data }) => [type, data['action'], data['reason']])).toEqual([
        ['SandboxContained', 'pause', 'phones home'],
        ['SandboxContained', 'pause', 'sends spam'],
        ['SandboxContained', 'kill', 'again'],
        ['SandboxReleased', 'kill', undefined],
        ['SandboxReleased', 'pause', undefined],
      ]);
    });

    test('an ordinary pause and an ordinary stop are no containment', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      await api.client.sandboxes.pause('box');
      await api.observe(hostId, id, { state: PAUSED });
      expect(resultsOf(await api.client.sandboxes.release('box'))).toEqual([]);
      expect((await api.client.sandboxes.resume('box')).containment?.records).toEqual([]);
    });

    test('the grace of a kill does not stay for the stops that follow', async () => {
      await using api = await start();
      const { id, hostId } = await runs(api);
      const killing = api.client.sandboxes.contain('box', ['kill']);
      await until(api, id, (row) => row.desired === 'stopped');
      await api.observe(hostId, id, { state: STOPPED });
      await killing;
      const releasing = api.client.sandboxes.release('box');
      await until(api, id, (row) => row.desired === 'running');
      await api.observe(hostId, id, { state: RUNNING, startCount: 2n });
      await releasing;
      await api.client.sandboxes.stop('box');
      const { stopGraceMs, spec } = await api.store.sandboxes.find('box');
      expect(stopGraceMs).toBe(spec.stopGraceMs);
      expect((await api.client.sandboxes.get('box')).containment?.killed).toBe(false);
    });
  });

  describe('I-35: the worldview', () => {
    test('a watcher gets what is true now, then every later event once, over a restart of the server', async () => {
      await using api = await start();
      const { id, thumbprint } = await runs(api);
      const seen: unknown[] = [];
      const ids: bigint[] = [];
      const snapshot = Promise.withResolvers<void>();
      const stop = new AbortController();
      const watching = (async () => {
        for await (const update of api.client.worldview.watch({ signal: stop.signal })) {
          if (update.kind === 'snapshot') {
            seen.push(update.sandboxes.map(({ sandboxId, session, identity }) => [sandboxId, session?.state, identity?.verdict]));
            snapshot.resolve();
            continue;
          }
          ids.push(update.event.id);
          seen.push(update.event.type);
          if (update.event.type === 'SessionFailed') return;
        }
      })();
      await snapshot.promise;
      api.worldview.publish({ kind: 'session', type: 'SessionBroken', subject: id, data: { message: 'reset' } });
      await api.worldview.flush();
      await api.stop();
      api.worldview.publish({ kind: 'identity', type: 'IdentityRenewed', subject: id, data: { thumbprint } });
      await api.worldview.flush();
      await api.restart();
      api.worldview.publish({ kind: 'session', type: 'SessionFailed', subject: id, data: { attempts: 3, reason: 'x', message: 'gone' } });
      await watching;
      stop.abort();
      expect(seen).toEqual([[[id, 'connected', 'trusted']], 'SessionBroken', 'IdentityRenewed', 'SessionFailed']);
      expect(ids).toEqual([...new Set(ids)].sort((a, b) => Number(a - b)));
    });

    test('a snapshot of more than a page holds every sandbox once, and says where it stands', async () => {
      await using api = await start();
      for (let i = 0; i < worldviewPage + 3; i++) await api.store.sandboxes.create(draft());
      const last = await api.store.events.lastId();
      const { atEventId, sandboxes } = await api.client.worldview.snapshot();
      expect(Number(atEventId)).toBe(last);
      expect(new Set(sandboxes.map(({ sandboxId }) => sandboxId)).size).toBe(worldviewPage + 3);
      expect(sandboxes).toHaveLength(worldviewPage + 3);
    });

    test('of one sandbox alone: its view, and its events', async () => {
      await using api = await start();
      const { id } = await runs(api);
      const { id: other } = await runs(api, 'other');
      const { sandboxes, atEventId } = await api.client.worldview.snapshot({ sandbox: id });
      expect(sandboxes.map(({ sandboxId }) => sandboxId)).toEqual([id]);
      for (const subject of [other, id]) api.worldview.publish({ kind: 'session', type: 'SessionBroken', subject, data: { message: '' } });
      await api.worldview.flush();
      const stop = new AbortController();
      for await (const update of api.client.worldview.watch({ sandbox: id, afterId: atEventId, signal: stop.signal })) {
        expect(update).toMatchObject({ kind: 'event', event: { type: 'SessionBroken', subject: id } });
        break;
      }
      stop.abort();
    });
  });

  test('I-35: events are watched by several kinds at once; a kind that there is not is refused with those that there are', async () => {
    await using api = await start();
    const { id } = await runs(api);
    const kinds: string[] = [];
    for await (const event of api.client.events.watch({
      fromStart: true,
      follow: false,
      subject: id,
      kinds: ['session', 'identity', 'init'],
    })) {
      kinds.push(`${event.kind}/${event.type}`);
    }
    expect(kinds).toEqual(['identity/AgentRegistered', 'session/SessionConnected', 'identity/AgentTrusted', 'init/InitCompleted']);
    const watching = api.client.events.watch({ kinds: ['session', 'sesion'] })[Symbol.asyncIterator]();
    const error = await errorOf(watching.next());
    expect(error.code).toBe('invalid-argument');
    expect(error.hint).toContain('sandbox, host, session, identity, init');
  });

  test('I-35: a watcher that has seen what is not there is told so, and not left to wait for it', async () => {
    await using api = await start();
    await runs(api);
    const last = BigInt(await api.store.events.lastId());
    const next = async (afterId: bigint) => await api.client.events.watch({ afterId, follow: false })[Symbol.asyncIterator]().next();
    expect(await next(last)).toMatchObject({ done: true });
    const error = await errorOf(next(last + 1n));
    expect([error.code, error.message]).toEqual(['invalid-argument', `there is no event ${last + 1n}: the newest is ${last}`]);
  });

  test('I-29: a setup that cannot be is refused when the sandbox is asked for', async () => {
    await using api = await start();
    const setup = { files: [{ path: 'token', source: { case: 'secret', value: 'TOKEN' } as const }] };
    const refused = await errorOf(api.client.sandboxes.create({ spec: { image: 'host', setup } }));
    expect([refused.code, refused.message]).toEqual(['invalid-argument', expect.stringContaining('TOKEN')]);
    expect(await api.client.sandboxes.list()).toEqual([]);
    const made = await api.client.sandboxes.create({ spec: { image: 'host', setup }, secrets: [{ name: 'TOKEN', value: 'x' }] });
    expect(made.spec?.setup?.files).toHaveLength(1);
  });
});

/** The sandbox's row as soon as it is so. */
async function until(
  api: TestApi,
  id: SandboxId,
  is: (row: Awaited<ReturnType<TestApi['store']['sandboxes']['find']>>) => boolean,
): Promise<Awaited<ReturnType<TestApi['store']['sandboxes']['find']>>> {
  return await vi.waitFor(async () => {
    const row = await api.store.sandboxes.find(id);
    if (!is(row)) throw new Error('not yet');
    return row;
  });
}
