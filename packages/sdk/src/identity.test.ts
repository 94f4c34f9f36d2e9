import { createServer, type ServerHttp2Session } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { createClient, type ServiceImpl } from '@connectrpc/connect';
import { connectNodeAdapter, createConnectTransport } from '@connectrpc/connect-node';
import { FakeClock, newSandboxId, systemClock, type Clock } from '@drover/foundation';
import { api, sandbox } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { afterEach, describe, expect, test } from 'vitest';
import { Calls } from './calls.ts';
import { actionsOf } from '@drover/protocol';
import { eventsApi, type EventsApi } from './events.ts';
import { identitiesApi, type IdentitiesApi } from './identities.ts';
import { planWaitMs } from './limits.ts';
import { sandboxesApi, type SandboxesApi } from './sandboxes.ts';
import { worldviewApi, type WorldviewApi, type WorldviewUpdate } from './worldview.ts';

interface Implementation {
  readonly sandboxes?: Partial<ServiceImpl<typeof api.SandboxService>>;
  readonly events?: Partial<ServiceImpl<typeof api.EventService>>;
  readonly identities?: Partial<ServiceImpl<typeof api.IdentityService>>;
}

interface Served {
  readonly sandboxes: SandboxesApi;
  readonly events: EventsApi;
  readonly identities: IdentitiesApi;
  readonly worldview: WorldviewApi;
  /** Cuts every connection, as a killed server does. */
  cut(): void;
}

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

/** A real Connect server, over a real connection that can be cut. */
async function serve(implementation: Implementation, clock: Clock = systemClock): Promise<Served> {
  const handler = connectNodeAdapter({
    routes: (router) => {
      router.service(api.SandboxService, implementation.sandboxes ?? {});
      router.service(api.EventService, implementation.events ?? {});
      router.service(api.IdentityService, implementation.identities ?? {});
    },
  });
  const sessions = new Set<ServerHttp2Session>();
  const server = createServer(handler).on('session', (session) => {
    sessions.add(session);
    session.on('error', () => undefined);
    session.once('close', () => sessions.delete(session));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const sessionManager = new ReadableSessionManager(baseUrl, {}, {});
  const transport = createConnectTransport({ baseUrl, httpVersion: '2', sessionManager });
  const calls = new Calls(baseUrl, clock);
  const cut = (): void => {
    for (const session of sessions) session.destroy();
  };
  closing.push(async () => {
    sessionManager.abort();
    cut();
    await new Promise<void>((resolve) => server.close(() => resolve()));
  });
  const events = createClient(api.EventService, transport);
  return {
    sandboxes: sandboxesApi(createClient(api.SandboxService, transport), calls, eventsApi(events, calls)),
    events: eventsApi(events, calls),
    identities: identitiesApi(createClient(api.IdentityService, transport), calls),
    worldview: worldviewApi(events, calls),
    cut,
  };
}

async function until(signal: AbortSignal): Promise<never> {
  return await new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
}

const page = (atEventId: bigint, last: boolean, ...ids: readonly string[]): api.WorldviewUpdate =>
  create(api.WorldviewUpdateSchema, {
    update: { case: 'page', value: { atEventId, last, sandboxes: ids.map((sandboxId) => ({ sandboxId })) } },
  });

const event = (id: bigint, init: MessageInitShape<typeof api.EventSchema> = {}): api.WorldviewUpdate =>
  create(api.WorldviewUpdateSchema, { update: { case: 'event', value: { id, kind: 'init', type: 'InitStarted', ...init } } });

const brief = (update: WorldviewUpdate): string =>
  update.kind === 'event'
    ? `event ${update.event.id}`
    : `snapshot at ${update.atEventId}: ${update.sandboxes.map(({ sandboxId }) => sandboxId).join(' ')}`;

async function take(updates: AsyncIterable<WorldviewUpdate>, count: number): Promise<readonly string[]> {
  const taken: string[] = [];
  for await (const update of updates) {
    taken.push(brief(update));
    if (taken.length === count) break;
  }
  return taken;
}

describe('I-35: the worldview', () => {
  test('is a snapshot, whole, then every later event; a broken connection is made again behind the last one', async () => {
    const asked: bigint[] = [];
    const served = await serve({
      events: {
        async *watchWorldview({ afterId }, { signal }) {
          asked.push(afterId);
          if (asked.length === 1) {
            yield page(7n, false, 'a');
            yield page(8n, true, 'b');
            yield event(9n);
            yield event(11n);
            await until(signal);
          }
          yield event(12n);
          await until(signal);
        },
      },
    });
    const reconnects: Error[] = [];
    const taken: string[] = [];
    for await (const update of served.worldview.watch({ onReconnect: (error) => reconnects.push(error) })) {
      taken.push(brief(update));
      if (taken.length === 3) served.cut();
      if (taken.length === 4) break;
    }
    // It stands where its first page says: what came while it was read is told again, or not missed.
    expect(taken).toEqual(['snapshot at 7: a b', 'event 9', 'event 11', 'event 12']);
    expect(asked).toEqual([0n, 11n]);
    expect(reconnects).toHaveLength(1);
  });

  test('begins a snapshot anew that broke off in its middle', async () => {
    let calls = 0;
    const served = await serve({
      events: {
        async *watchWorldview(_, { signal }) {
          yield page(7n, false, 'a');
          if (++calls === 1) {
            setImmediate(() => served.cut());
            await until(signal);
          }
          yield page(7n, true, 'b');
          await until(signal);
        },
      },
    });
    expect(await take(served.worldview.watch(), 1)).toEqual(['snapshot at 7: a b']);
    expect(calls).toBe(2);
  });

  test('goes on from an event of before a restart, without a snapshot', async () => {
    const asked: api.WatchWorldviewRequest[] = [];
    const served = await serve({
      events: {
        async *watchWorldview(request, { signal }) {
          asked.push(request);
          yield event(42n);
          await until(signal);
        },
      },
    });
    expect(await take(served.worldview.watch({ afterId: 41n, sandbox: 'sb' }), 1)).toEqual(['event 42']);
    expect(asked).toMatchObject([{ afterId: 41n, sandbox: 'sb', follow: true }]);
  });

  test('I-36: a watcher that lost events begins again with a new snapshot', async () => {
    const asked: bigint[] = [];
    const served = await serve({
      events: {
        async *watchWorldview({ afterId }, { signal }) {
          asked.push(afterId);
          yield page(asked.length === 1 ? 1n : 90n, true, 'a');
          if (asked.length === 1) yield event(80n, { lost: 60n });
          else yield event(91n);
          await until(signal);
        },
      },
    });
    expect(await take(served.worldview.watch(), 3)).toEqual(['snapshot at 1: a', 'snapshot at 90: a', 'event 91']);
    expect(asked).toEqual([0n, 0n]);
  });

  test('is one snapshot for who asks once', async () => {
    const served = await serve({
      events: {
        async *watchWorldview({ follow }) {
          if (follow) throw new Error('it was to end');
          yield page(7n, false, 'a');
          await Promise.resolve();
          yield page(7n, true, 'b');
        },
      },
    });
    expect(brief(await served.worldview.snapshot())).toBe('snapshot at 7: a b');
  });

  test('tells what the server refuses', async () => {
    const served = await serve({});
    await expect(take(served.worldview.watch(), 1)).rejects.toMatchObject({ code: 'unimplemented' });
  });
});

describe('I-4: containment', () => {
  test('asks for the actions by name, and with one key when the answer is lost', async () => {
    const asked: api.ContainSandboxRequest[] = [];
    const served = await serve({
      sandboxes: {
        async containSandbox(request, { signal }) {
          asked.push(request);
          if (asked.length === 1) {
            setImmediate(() => served.cut());
            await until(signal);
          }
          return create(api.ContainSandboxResponseSchema, { results: [{ action: 'cut-network', done: true }] });
        },
      },
    });
    const { results } = await served.sandboxes.contain('box', ['cut-network', 'revoke']);
    expect(results).toMatchObject([{ action: 'cut-network', done: true }]);
    expect(asked).toMatchObject([
      { sandbox: 'box', actions: { networkCut: true, revoked: true, paused: false, killed: false } },
      { sandbox: 'box', actions: { networkCut: true, revoked: true, paused: false, killed: false } },
    ]);
    expect(asked[0]?.idempotencyKey).toMatch(/./);
    expect(asked[1]?.idempotencyKey).toBe(asked[0]?.idempotencyKey);
  });

  test('must say how; releasing says nothing for all that is in force', async () => {
    const asked: api.ReleaseSandboxRequest[] = [];
    const served = await serve({
      sandboxes: {
        releaseSandbox(request) {
          asked.push(request);
          return create(api.ContainSandboxResponseSchema);
        },
      },
    });
    await expect(served.sandboxes.contain('box', [])).rejects.toMatchObject({
      code: 'invalid-argument',
      hint: expect.stringContaining('cut-network') as string,
    });
    await served.sandboxes.release('box');
    expect(actionsOf(asked[0]?.actions)).toEqual([]);
    await served.sandboxes.release('box', ['pause', 'kill'], { idempotencyKey: 'mine' });
    expect(actionsOf(asked[1]?.actions)).toEqual(['pause', 'kill']);
    expect(asked[1]?.idempotencyKey).toBe('mine');
  });
});

test('I-11: evicting an identity gives the row that was, once, though its answer was lost', async () => {
  const rows = new Map([['box', 'ab12']]);
  const answers = new Map<string, api.Identity>();
  const served = await serve({
    identities: {
      async evictIdentity({ identity, idempotencyKey }, { signal }) {
        const before = answers.get(idempotencyKey);
        if (before !== undefined) return before;
        const row = create(api.IdentitySchema, { name: identity, thumbprint: rows.get(identity) ?? '' });
        rows.delete(identity);
        answers.set(idempotencyKey, row);
        setImmediate(() => served.cut());
        return await until(signal);
      },
    },
  });
  expect(await served.identities.evict('box')).toMatchObject({ thumbprint: 'ab12' });
});

describe('I-30: waiting for a sandbox to be ready', () => {
  const id = newSandboxId();
  const { RUNNING, FAILED, STARTING, STOPPED, DELETING } = sandbox.SandboxState;
  type Row = MessageInitShape<typeof api.SandboxSchema>;

  /** A sandbox that goes through these, an event each. */
  function going(rows: readonly (Row & { readonly type?: string })[], clock?: Clock): Promise<Served> {
    let at = -1;
    return serve(
      {
        sandboxes: { getSandbox: () => create(api.SandboxSchema, { id, name: 'box', ...rows[Math.max(0, at)] }) },
        events: {
          async *watchEvents(request, { signal }) {
            expect(request).toMatchObject({ subject: id, kinds: ['sandbox', 'init'], fromStart: true, follow: true });
            for (const { type = 'SandboxStateChanged' } of rows) {
              at++;
              yield create(api.EventSchema, { id: BigInt(at + 1), kind: 'sandbox', type });
            }
            await until(signal);
          },
        },
      },
      clock,
    );
  }

  test('ends when its plan is done, not when it runs', async () => {
    const { sandboxes } = await going([
      { state: STARTING },
      { state: RUNNING },
      { state: RUNNING, init: { state: 'running', step: 1, count: 2 }, type: 'InitStepStarted' },
      { state: RUNNING, init: { state: 'completed' }, type: 'InitCompleted' },
    ]);
    expect(await sandboxes.waitReady(id)).toMatchObject({ init: { state: 'completed' } });
  });

  test('goes on while a plan that lost its session is run again, and while the host is to tell why a command did not start', async () => {
    const { sandboxes } = await going([
      { state: RUNNING, init: { state: 'failed', stepName: 'git', reason: 'transport-error' }, type: 'InitFailed' },
      { state: RUNNING, init: { state: 'running' }, type: 'InitStarted' },
      { state: RUNNING, init: { state: 'failed', stepName: 'agent-ready', reason: 'spawn-failed' }, type: 'InitFailed' },
      {
        state: FAILED,
        exitCode: 127,
        reason: 'command-not-found',
        init: { state: 'failed', stepName: 'agent-ready', reason: 'spawn-failed' },
      },
    ]);
    await expect(sandboxes.waitReady(id)).rejects.toMatchObject({ code: 'command-not-found' });
  });

  test('ends with a command that was over before', async () => {
    const { sandboxes } = await going([{ state: STARTING }, { state: STOPPED, exitCode: 0 }]);
    expect(await sandboxes.waitReady('box')).toMatchObject({ exitCode: 0 });
  });

  test.each<[string, Row, RegExp]>([
    // It ended because the plan failed: an exit code of its init is none of its command.
    ['a plan that failed', { state: FAILED, reason: 'init-failed', message: 'post-init: exit 3', exitCode: 0 }, /post-init: exit 3/],
    [
      'a command whose start was never answered',
      { state: RUNNING, init: { state: 'failed', stepName: 'agent-ready', reason: 'timeout' }, message: 'no answer' },
      /no answer/,
    ],
    [
      'a plan that failed, when it is removed already',
      { state: DELETING, init: { state: 'failed', stepName: 'git', reason: 'exit-code' }, exitCode: 0 },
      /it is deleting/,
    ],
    ['one that was stopped before its command began', { state: STOPPED }, /it is stopped/],
    ['an image that is not there', { state: FAILED, message: 'there is no image x' }, /there is no image x/],
  ])('fails with %s', async (_, row, message) => {
    const { sandboxes } = await going([{ state: STARTING }, row]);
    const waiting = sandboxes.waitReady(id);
    await expect(waiting).rejects.toMatchObject({ code: 'runtime-failed' });
    await expect(waiting).rejects.toThrow(message);
  });

  test('ends at its limit, counted from its start', async () => {
    const clock = new FakeClock();
    const { sandboxes } = await going([{ state: RUNNING }], clock);
    const waiting = sandboxes.waitReady(id);
    const failed = expect(waiting).rejects.toMatchObject({ code: 'timed-out' });
    await expect.poll(() => clock.sleeping).toBe(1);
    await clock.advance(planWaitMs);
    await failed;
    expect(clock.sleeping).toBe(0);
  });

  test('ends with its caller', async () => {
    const { sandboxes } = await going([{ state: STARTING }]);
    const stop = new AbortController();
    const waiting = sandboxes.waitReady(id, { signal: stop.signal });
    stop.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
  });
});
