import { create } from '@bufbuild/protobuf';
import { Code, ConnectError, createClient, createRouterTransport } from '@connectrpc/connect';
import { DroverError, FakeClock, newHostId, newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { namesOf } from '@drover/pki';
import { init, sandbox } from '@drover/protocol';
import { createTestAuthority, type TestAuthority } from '@drover/init/testing';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { SandboxEvent } from '../events/typed.ts';
import { dialTotalMs, lostRedialMs, concurrentLostRedials } from '../limits.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import { emptyView } from '../worldview/apply.ts';
import type { InitView, SandboxView } from '../worldview/worldview.ts';
import { CloseFailed, type Connection, type Connector } from './connection/connect.ts';
import type { Wait } from './policy/crash-breaker.ts';
import { Dialer } from './dialer.ts';

/** A peer without a certificate whose stream breaks immediately, ends with MainExited, or never responds. */
function connection(
  options: { readonly close?: () => Promise<void>; readonly silent?: boolean; readonly ends?: boolean; readonly says?: string } = {},
): Connection {
  const lost = new AbortController();
  const transport = createRouterTransport(({ service }) => {
    service(init.InitService, {
      async *session(_requests, { signal }) {
        const left = new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
        left.catch(() => lost.abort());
        if (options.ends === true) {
          yield create(init.SessionResponseSchema, { id: 0n, payload: { case: 'mainExited', value: { exit: { code: 0 } } } });
        }
        if (options.ends === true || options.silent === true) await left;
        throw new ConnectError(options.says ?? 'cut', Code.Aborted);
      },
    });
  });
  return {
    client: createClient(init.InitService, transport),
    shown: { certificate: undefined, authorized: false, authorizationError: '' },
    lost: lost.signal,
    throttled: new AbortController().signal,
    close: options.close ?? (() => Promise.resolve()),
  };
}

let authority: TestAuthority;
let clock: FakeClock;
let rows: Map<SandboxId, SandboxRow>;
let published: SandboxEvent[];
let failed: SandboxId[];
let views: Map<SandboxId, SandboxView>;
let connected: boolean;
let attempts: { readonly id: SandboxId; readonly at: number }[];
let connect: Connector;
/** Dials that wait after crashes of the server. */
let waits: Map<SandboxId, Wait>;
let random: () => number;
let dialer: Dialer;

beforeAll(async () => {
  authority = await createTestAuthority();
});
afterAll(async () => await authority.close());

beforeEach(() => {
  clock = new FakeClock();
  rows = new Map();
  published = [];
  failed = [];
  views = new Map();
  connected = true;
  attempts = [];
  waits = new Map();
  random = () => 1;
  connect = () => Promise.reject(new Error('no response'));
  dialer = new Dialer({
    store: { sandboxes: { get: (id) => Promise.resolve(rows.get(id)) } },
    hub: { isConnected: () => connected },
    connect: async (target, signal) => {
      attempts.push({ id: target.id, at: clock.now() });
      return await connect(target, signal);
    },
    journal: { publish: (event) => void published.push(event), flush: () => Promise.resolve() },
    // These connections present no certificate, so the registry is not needed.
    registry: {
      standing: () => Promise.reject(new Error('not asked')),
      secondToken: () => Promise.reject(new Error('not asked')),
      renewed: () => Promise.reject(new Error('not asked')),
      seen: () => undefined,
    },
    worldview: { get: (id) => Promise.resolve(views.get(id) ?? emptyView(id)), record: () => undefined },
    ca: authority.authority,
    plans: () => Promise.resolve([{ name: 'agent-ready' }]),
    lastRefusal: () => undefined,
    initFailed: (id) => Promise.resolve(failed.push(id) > 0),
    names: namesOf('test.drover'),
    caPem: authority.authority.caPem,
    clock,
    logger: silentLogger,
    random: () => random(),
    breaker: { admit: (id) => waits.get(id) },
    changed: () => undefined,
  });
});
afterEach(async () => await dialer.close());

function running(change: Partial<SandboxRow> = {}): SandboxId {
  const id = newSandboxId();
  const row = {
    id,
    project: '',
    name: 'box',
    hostId: newHostId(),
    desired: 'running',
    observed: 'running',
    address: '10.0.0.2',
    startCount: 1,
    spec: create(sandbox.SandboxSpecSchema),
    ...change,
  };
  rows.set(id, row as SandboxRow);
  return id;
}

const eventTypes = (id: SandboxId): string[] => published.filter(({ subject }) => subject === id).map(({ type }) => type);
const failure = (id: SandboxId): unknown => published.find(({ subject, type }) => subject === id && type === 'SessionFailed')?.data;
const settle = async (): Promise<void> => await clock.advance(0);

describe('a dial', () => {
  it('I-23: is attempted with exponential backoff from 0.5 to 10 s, for 60 s in total', async () => {
    const id = running();
    dialer.dial(id);
    await clock.advance(120_000);
    expect(attempts.map(({ at }) => at)).toEqual([0, 500, 1_500, 3_500, 7_500, 15_500, 25_500, 35_500, 45_500, 55_500]);
    expect(failure(id)).toEqual({ attempts: 10, reason: 'unreachable', message: expect.stringContaining('no response') });
    expect(published.filter(({ type }) => type === 'SessionConnecting').map(({ data }) => data)).toEqual(
      attempts.map((_, i) => ({ attempt: i + 1 })),
    );
  });

  it('I-23: has full jitter', async () => {
    const draws = [0.5, 0, 0.25];
    random = () => draws.shift() ?? 1;
    dialer.dial(running());
    await clock.advance(2_000);
    expect(attempts.map(({ at }) => at)).toEqual([0, 250, 250, 750]);
  });

  it('I-23: ends an attempt without a response in time', async () => {
    const id = running();
    connect = () => Promise.resolve(connection({ silent: true }));
    dialer.dial(id);
    await clock.advance(60_000);
    expect(attempts.map(({ at }) => at)).toEqual([0, 20_500, 41_500]);
    expect(failure(id)).toMatchObject({ message: expect.stringContaining('did not respond in time') });
  });

  it.each([
    ['not-running', { observed: 'stopped' }, 'stopped'],
    ['not-running', { observed: undefined }, 'waiting for a place'],
    ['not-running', { deletedAt: 1 }, 'removed'],
    ['no-address', { address: '' }, 'address'],
  ] as const)('I-23: to a sandbox that is %s ends immediately (%j)', async (reason, change, words) => {
    const id = running(change);
    dialer.dial(id);
    await settle();
    expect(failure(id)).toEqual({ attempts: 0, reason, message: expect.stringContaining(words) });
    expect(attempts).toEqual([]);
  });

  it('I-23: reads the row before each attempt', async () => {
    const id = running();
    dialer.dial(id);
    await clock.advance(600);
    expect(attempts).toHaveLength(2);
    connected = false;
    await clock.advance(1_000);
    expect(attempts).toHaveLength(2);
    expect(failure(id)).toMatchObject({ attempts: 2, reason: 'host-not-connected' });
  });

  it('I-21: returns immediately and never throws, for any sandbox', async () => {
    const unknown = newSandboxId();
    expect(dialer.dial(unknown)).toBeUndefined();
    await settle();
    expect(failure(unknown)).toMatchObject({ reason: 'not-running' });
  });

  it('I-22: is the only one for concurrent requests; after its end it can be requested again', async () => {
    const id = running();
    for (let i = 0; i < 100; i++) dialer.dial(id);
    await settle();
    expect(attempts).toHaveLength(1);
    rows.delete(id);
    await clock.advance(1_000);
    expect(dialer.get(id)?.ended).toBe(true);
    const again = running();
    rows.set(id, { ...(rows.get(again) as SandboxRow), id });
    dialer.dial(id);
    await settle();
    expect(attempts).toHaveLength(2);
  });

  it('I-22: begins after a dial that is ending, never beside it', async () => {
    const id = running();
    const closing = Promise.withResolvers<void>();
    let open = 0;
    connect = () => {
      expect(++open).toBe(1);
      return Promise.resolve(connection({ silent: true, close: async () => void (await closing.promise, open--) }));
    };
    dialer.dial(id);
    await settle();
    const ended = dialer.end(id);
    dialer.dial(id);
    await settle();
    expect(attempts).toHaveLength(1);
    closing.resolve();
    await ended;
    await settle();
    expect(attempts).toHaveLength(2);
  });

  it('bounds the error text, which the peer controls', async () => {
    const id = running();
    connect = () => Promise.resolve(connection({ says: 'x'.repeat(50_000) }));
    dialer.dial(id);
    await clock.advance(120_000);
    expect(JSON.stringify(failure(id)).length).toBeLessThan(1_500);
    expect(dialer.status(id).lastError.length).toBeLessThan(1_500);
  });

  it('I-24: publishes nothing at an intended end', async () => {
    const id = running();
    dialer.dial(id);
    await settle();
    await dialer.end(id);
    await clock.advance(60_000);
    expect(eventTypes(id)).toEqual(['SessionConnecting']);
    expect(dialer.status(id).state).toBe('none');
  });
});

describe('I-2: an init that reports the end of its sandbox', () => {
  beforeEach(() => {
    connect = () => Promise.resolve(connection({ ends: true }));
  });
  const observe = async (id: SandboxId, change: Partial<SandboxRow>): Promise<void> => {
    rows.set(id, { ...(rows.get(id) as SandboxRow), ...change });
    dialer.wake(id);
    await settle();
  };

  it('ends the dial when its host confirms the end, and leaves no state', async () => {
    const id = running();
    dialer.dial(id);
    await clock.advance(9_000);
    expect(dialer.status(id).state).toBe('none');
    await observe(id, { observed: 'stopped' });
    await clock.advance(120_000);
    expect(eventTypes(id)).toEqual(['SessionConnecting']);
    await expect.poll(() => dialer.get(id), { timeout: 10_000 }).toBeUndefined();
  });

  it('is redialled if its host reports that the sandbox runs', async () => {
    const id = running();
    dialer.dial(id);
    await clock.advance(9_000);
    await observe(id, { message: 'still there' });
    expect(attempts).toHaveLength(1);
    await clock.advance(1_500);
    expect(eventTypes(id)).toEqual(['SessionConnecting', 'SessionBroken', 'SessionConnecting']);
    expect(published.find(({ type }) => type === 'SessionBroken')?.data).toEqual({
      message: 'its init reported the end of the main process, but its host reports that it runs',
    });
  });

  it('repeatedly within its plan fails the plan (I-30)', async () => {
    const id = running();
    dialer.dial(id);
    await clock.advance(120_000);
    expect(attempts).toHaveLength(5);
    expect(failed).toEqual([id]);
    expect(failure(id)).toMatchObject({ reason: 'init-interrupted' });
  });

  it('repeatedly after its plan was completed fails nothing, and its workload keeps running', async () => {
    const id = running();
    const view = emptyView(id);
    views.set(id, { ...view, init: { ...view.init, startCount: 1, state: 'completed' } });
    dialer.dial(id);
    await clock.advance(120_000);
    connect = () => Promise.reject(new Error('no response'));
    await clock.advance(120_000);
    expect(attempts.length).toBeGreaterThan(5);
    expect(failed).toEqual([]);
  });

  it('is redialled for the new start if the sandbox was started again', async () => {
    const id = running();
    dialer.dial(id);
    await settle();
    await observe(id, { startCount: 2 });
    expect(eventTypes(id)).toEqual(['SessionConnecting', 'SessionConnecting']);
  });

  it('is redialled after the reconnect of its host', async () => {
    const id = running();
    dialer.dial(id);
    await settle();
    connected = false;
    await observe(id, {});
    await clock.advance(120_000);
    expect(eventTypes(id)).toEqual(['SessionConnecting']);
    connected = true;
    dialer.dial(id);
    await settle();
    expect(attempts).toHaveLength(2);
  });
});

describe('I-30: a running sandbox whose init never responds', () => {
  const initFailed = (id: SandboxId): unknown => published.find(({ subject, type }) => subject === id && type === 'InitFailed')?.data;
  const ofPlan = (id: SandboxId, change: Partial<InitView>): void => {
    const view = emptyView(id);
    views.set(id, { ...view, init: { ...view.init, startCount: 1, state: 'running', ...change } });
  };

  it('fails at the end of the dial, since its command never began', async () => {
    const id = running();
    dialer.dial(id);
    await clock.advance(50_000);
    expect(failed).toEqual([]);
    await clock.advance(70_000);
    expect(failed).toEqual([id]);
    expect(initFailed(id)).toEqual({
      step: 'agent-ready',
      index: 1,
      count: 1,
      startCount: 1,
      reason: 'transport-error',
      message: 'its command was never started, since its init could not be reached for 60 s: no response',
    });
    expect(eventTypes(id).slice(-2)).toEqual(['InitFailed', 'SessionFailed']);
  });

  it('has the full time from when it runs: the host may take any time to start it', async () => {
    const id = running({ observed: 'starting', startCount: 0 });
    dialer.dial(id);
    await clock.advance(50_000);
    rows.set(id, { ...rows.get(id), observed: 'running', startCount: 1 } as SandboxRow);
    dialer.wake(id);
    await clock.advance(45_000);
    expect(failed).toEqual([]);
    await clock.advance(30_000);
    expect(failed).toEqual([id]);
  });

  it('does not fail while it starts, and is redialled when it runs', async () => {
    const id = running({ observed: 'starting', startCount: 0 });
    dialer.dial(id);
    await clock.advance(120_000);
    expect(failed).toEqual([]);
    expect(failure(id)).toMatchObject({ reason: 'unreachable' });
  });

  it.each([
    ['began', { state: 'running' }],
    ['lost', { state: 'failed', failure: { reason: 'transport-error', message: 'the session broke' } }],
  ] as const)('fails within a plan that an earlier control plane %s', async (_, view) => {
    const id = running();
    ofPlan(id, { ...view, place: { step: 'git', index: 1, count: 2 } });
    dialer.dial(id);
    await clock.advance(120_000);
    expect(failed).toEqual([id]);
  });

  it.each([
    ['was started', { state: 'completed', place: undefined }],
    ['may have been started', { place: { step: 'agent-ready', index: 2, count: 2 } }],
    [
      'may have been started before the session broke',
      {
        state: 'failed',
        place: { step: 'agent-ready', index: 2, count: 2 },
        failure: { reason: 'transport-error', message: 'the session broke' },
      },
    ],
  ] as const)('does not fail when its command %s', async (_, view) => {
    const id = running();
    ofPlan(id, view);
    dialer.dial(id);
    await clock.advance(120_000);
    expect(failed).toEqual([]);
    expect(initFailed(id)).toBeUndefined();
    expect(failure(id)).toMatchObject({ reason: 'unreachable' });
  });

  it('can be redialled', async () => {
    const id = running();
    dialer.dial(id);
    await clock.advance(120_000);
    connect = () => Promise.resolve(connection({ silent: true }));
    dialer.dial(id);
    await settle();
    expect(dialer.status(id).state).toBe('connected');
  });
});

describe('a lost session', () => {
  const gaveUp = async (count = 1): Promise<readonly SandboxId[]> => {
    const ids = Array.from({ length: count }, () => running());
    for (const id of ids) {
      views.set(id, { ...emptyView(id), init: { ...emptyView(id).init, state: 'completed', startCount: 1 } });
      dialer.dial(id);
    }
    await clock.advance(60_000);
    attempts = [];
    return ids;
  };

  it('is redialled slowly, with jitter, while its sandbox runs, and publishes nothing until it succeeds', async () => {
    const [id = newSandboxId()] = await gaveUp();
    const before = published.length;
    let draws = 0;
    random = () => (draws++ % 5) / 4;
    await clock.advance(lostRedialMs * 12);
    const gaps = attempts.slice(1).map(({ at }, i) => at - (attempts[i]?.at ?? 0));
    expect(gaps.length).toBeGreaterThanOrEqual(7);
    for (const gap of gaps) {
      expect(gap).toBeGreaterThanOrEqual(lostRedialMs / 2);
      expect(gap).toBeLessThanOrEqual(lostRedialMs * 1.5);
    }
    expect(new Set(gaps).size).toBeGreaterThan(1);
    expect(published).toHaveLength(before);
    expect(dialer.status(id)).toMatchObject({ state: 'broken', lastError: expect.stringContaining('no response') });
  });

  it('is not redialled after its sandbox has stopped, nor while its host is disconnected', async () => {
    const [id = newSandboxId()] = await gaveUp();
    connected = false;
    await clock.advance(lostRedialMs * 3);
    expect(attempts).toEqual([]);
    connected = true;
    await clock.advance(lostRedialMs * 1.5);
    expect(attempts.length).toBeGreaterThan(0);
    attempts = [];
    rows.set(id, { ...(rows.get(id) as SandboxRow), observed: 'stopped' });
    await clock.advance(lostRedialMs * 10);
    expect(attempts).toEqual([]);
    expect(dialer.get(id)).toBe(undefined);
  });

  it('is dialled immediately when a call needs it, without a concurrent slow redial', async () => {
    const [id = newSandboxId()] = await gaveUp();
    connect = () => Promise.resolve(connection({ silent: true }));
    dialer.dial(id);
    await clock.advance(0);
    expect(attempts).toHaveLength(1);
  });

  it('is one of a bounded number of redials under way', async () => {
    await gaveUp(concurrentLostRedials * 2);
    let open = 0;
    let most = 0;
    connect = async (_target, signal) => {
      most = Math.max(most, ++open);
      return await new Promise<never>((_resolve, reject) => {
        signal.addEventListener('abort', () => {
          open--;
          reject(new Error('late'));
        });
      });
    };
    await clock.advance(lostRedialMs * 5);
    expect(most).toBe(concurrentLostRedials);
  });
});

describe('I-25: the ceiling of descriptors', () => {
  const fails = (): Promise<void> => Promise.reject(new CloseFailed('still open'));

  it('five failures in a row to close a connection end the dial', async () => {
    const id = running();
    const other = running();
    connect = ({ id: target }) => Promise.resolve(connection(target === id ? { close: fails } : {}));
    dialer.dial(id);
    dialer.dial(other);
    await clock.advance(120_000);
    expect(attempts.filter((attempt) => attempt.id === id)).toHaveLength(5);
    expect(failure(id)).toMatchObject({ attempts: 5, reason: 'fd-leak-ceiling' });
    // The dial of another sandbox is not affected.
    expect(failure(other)).toMatchObject({ attempts: 10, reason: 'unreachable' });
  });

  it('one success resets the count', async () => {
    const id = running();
    let n = 0;
    connect = () => Promise.resolve(connection({ close: ++n === 5 ? () => Promise.resolve() : fails }));
    dialer.dial(id);
    await clock.advance(120_000);
    // Four that fail, one that does not, and five that fail.
    expect(attempts).toHaveLength(10);
    expect(failure(id)).toMatchObject({ attempts: 10, reason: 'fd-leak-ceiling' });
  });

  it('an abandoned connection attempt that does not close counts too', async () => {
    const id = running();
    connect = () => Promise.reject(new CloseFailed('still open'));
    dialer.dial(id);
    await clock.advance(120_000);
    expect(attempts).toHaveLength(5);
    expect(failure(id)).toMatchObject({ reason: 'fd-leak-ceiling' });
  });

  it('a further dial does not reset the count', async () => {
    const id = running();
    connect = () => Promise.resolve(connection({ close: fails }));
    dialer.dial(id);
    await clock.advance(120_000);
    dialer.dial(id);
    await clock.advance(120_000);
    expect(attempts).toHaveLength(6);
  });
});

describe('I-26: an error', () => {
  it.each([
    [
      'of the connector',
      (): never => {
        throw new TypeError('x is not a function');
      },
      'unreachable',
    ],
  ] as const)('%s is caught, published, and touches no other', async (_, panic, reason) => {
    const id = running();
    const other = running();
    connect = ({ id: target }) => (target === id ? panic() : Promise.resolve(connection({ silent: true })));
    dialer.dial(id);
    dialer.dial(other);
    await clock.advance(10_000);
    expect(dialer.status(other).state).toBe('connected');
    await clock.advance(60_000);
    expect(failure(id)).toMatchObject({ reason, message: expect.stringContaining('x is not a function') });
  });

  it('of the store during an attempt is retried', async () => {
    const id = running();
    const row = rows.get(id);
    let asked = 0;
    rows.get = () => {
      if (++asked <= 2) throw new Error('the disk is unavailable');
      return row;
    };
    connect = () => Promise.resolve(connection({ silent: true }));
    dialer.dial(id);
    await clock.advance(2_000);
    expect(dialer.status(id).state).toBe('connected');
  });
});

describe('a suspect of crashes of the server', () => {
  it('is dialled when the breaker admits it; until then the event and the status report the delay', async () => {
    const id = running();
    const other = running();
    const { promise: admitted, resolve: admit } = Promise.withResolvers<void>();
    const reason = new DroverError('failed-precondition', 'it ended the server');
    waits.set(id, { admitted, reason, delayMs: 600_000, cancel: () => undefined });
    connect = () => Promise.resolve(connection({ silent: true }));
    dialer.dial(id);
    dialer.dial(other);
    // Longer than a dial may take: the wait is not an attempt and does not fail the start.
    await clock.advance(dialTotalMs * 2);
    expect(new Set(attempts.map((attempt) => attempt.id))).toEqual(new Set([other]));
    expect(dialer.status(id)).toMatchObject({ state: 'broken', lastError: 'it ended the server' });
    expect(dialer.get(id)?.delayed).toBe(reason);
    expect(published.filter(({ subject }) => subject === id)).toEqual([
      { kind: 'session', type: 'SessionDelayed', subject: id, data: { delayMs: 600_000, message: 'it ended the server' } },
    ]);
    expect(failed).not.toContain(id);
    admit();
    await clock.advance(1_000);
    expect(dialer.get(id)?.delayed).toBeUndefined();
    expect(attempts.map((attempt) => attempt.id)).toContain(id);
  });

  it('is not dialled if it is stopped during the wait', async () => {
    const id = running();
    let cancelled = 0;
    waits.set(id, { admitted: new Promise(() => undefined), reason: undefined, delayMs: 0, cancel: () => void cancelled++ });
    dialer.dial(id);
    await clock.advance(1_000);
    await dialer.end(id);
    expect(cancelled).toBe(1);
    expect(attempts).toEqual([]);
  });
});
