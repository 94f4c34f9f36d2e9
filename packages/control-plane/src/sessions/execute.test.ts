import { fromBinary } from '@bufbuild/protobuf';
import { systemClock, type Clock } from '@drover/foundation';
import { init } from '@drover/protocol';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { endReportMs } from '../limits.ts';
import type { SessionManager } from './manager.ts';
import type { Behaviour, PeerSession } from './testing/peer.ts';
import { eventually, World } from './testing/world.ts';

let world: World;
let sessions: SessionManager;

beforeEach(async () => {
  world = await World.open();
  sessions = world.sessions();
});
afterEach(async () => await world[Symbol.asyncDispose]());

/** A setup with every step, and a secret in one of them. */
const whole = {
  setup: {
    files: [{ path: '.netrc', source: { case: 'secret' as const, value: 'NETRC' } }],
    git: { config: { 'user.name': 'N' }, clones: [{ url: 'ssh://git@example.org/x', path: 'x' }] },
    ssh: { knownHosts: ['h k'] },
    postInit: 'make',
  },
  secrets: { NETRC: 'password' },
};
const allSteps = ['config', 'git', 'ssh', 'clone', 'post-init', 'agent-ready'];

type Box = Awaited<ReturnType<World['box']>>;

/** The step that a request runs. */
function stepOf({ payload }: init.SessionRequest): string {
  return payload.case === 'runStep' ? payload.value.name : payload.case === 'agentReady' ? 'agent-ready' : '';
}

/** Behaves as given in one step, and otherwise as a correct init. */
function failing(step: string, behave: Behaviour): Pick<Parameters<World['box']>[0] & object, 'behave'> {
  const either: Behaviour = async (request, session) => {
    if (stepOf(request) === step) await behave(request, session);
    else good(request, session);
  };
  return { behave: { runStep: either, agentReady: either } };
}

function good({ id, payload }: init.SessionRequest, session: PeerSession): void {
  if (payload.case === 'agentReady') return session.answer(id, { case: 'agentReadyDone', value: {} });
  session.answer(id, { case: 'stepStarted', value: { pid: 1 } });
  session.answer(id, { case: 'stepExited', value: { exit: { code: 0 } } });
}

async function failed(box: Box): Promise<Record<string, unknown>> {
  sessions.dial(box.id);
  await eventually(async () => await world.eventTypes(box.id)).toContain('InitFailed');
  return (await world.events(box.id)).find(({ type }) => type === 'InitFailed')?.data ?? {};
}

const initEvents = async (box: Box): Promise<string[]> =>
  (await world.events(box.id)).flatMap(({ kind, type, data }) =>
    kind === 'init' ? [`${type} ${String(data['step'] ?? data['count'])}`] : [],
  );

describe('I-29: the plan', () => {
  it('runs its steps in order, each after the previous one has exited, and publishes every event', async () => {
    const open: string[] = [];
    const slowly: Behaviour = async (request, session) => {
      open.push(stepOf(request));
      expect(open).toHaveLength(1);
      await new Promise((resolve) => setImmediate(resolve));
      open.pop();
      good(request, session);
    };
    const box = await world.box({ ...whole, behave: { runStep: slowly } });
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(box.peer.steps()).toEqual(allSteps);
    expect(await initEvents(box)).toEqual([
      'InitStarted 6',
      ...allSteps.flatMap((step) => [`InitStepStarted ${step}`, `InitStepCompleted ${step}`]),
      'InitCompleted 6',
    ]);
    const { data } = (await world.events(box.id)).find(({ type, data: of }) => type === 'InitStepCompleted' && of['step'] === 'git') ?? {};
    expect(data).toEqual({ step: 'git', index: 2, count: 6, exitCode: 0, durationMs: expect.any(Number) });
    const requests = box.peer.sessions[0]?.requests.flatMap(({ payload }) => (payload.case === 'runStep' ? [payload.value] : [])) ?? [];
    expect(requests.map(({ argv, timeoutMs, once }) => [argv.join(' '), timeoutMs, once])).toEqual([
      ['drover-step config', 30_000, true],
      ['drover-step git', 30_000, true],
      ['drover-step ssh', 30_000, true],
      ['drover-step clone', 30_000, true],
      ['drover-step post-init', 600_000, true],
    ]);
    const [file] = fromBinary(init.ConfigStepSchema, requests[0]?.stdin ?? new Uint8Array()).files;
    expect([file?.path, Buffer.from(file?.content ?? []).toString(), file?.mode]).toEqual(['.netrc', 'password', 0o600]);
    expect(await world.row(box.id)).toMatchObject({ observed: 'running' });
  });

  it('R-19: no event contains a secret', async () => {
    const box = await world.box(whole);
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(JSON.stringify(await world.store.events.after(0, 10_000))).not.toContain('password');
  });

  it('I-31: two plans run concurrently', async () => {
    const held = Promise.withResolvers<void>();
    const stuck = await world.box({
      ...whole,
      ...failing('git', async (request, session) => (await held.promise, good(request, session))),
    });
    const other = await world.box({ ...whole, name: 'other' });
    sessions.dial(stuck.id);
    await eventually(() => stuck.peer.steps()).toEqual(['config', 'git']);
    sessions.dial(other.id);
    await eventually(async () => await world.eventTypes(other.id)).toContain('InitCompleted');
    expect(stuck.peer.steps()).toEqual(['config', 'git']);
    held.resolve();
    await eventually(async () => await world.eventTypes(stuck.id)).toContain('InitCompleted');
  });

  it('I-32: a session with an init that has completed the plan runs no step and publishes no event of it', async () => {
    const box = await world.box(whole);
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    const before = await initEvents(box);
    box.peer.hello = { stepsDone: allSteps };
    box.peer.cut();
    await eventually(async () => (await world.eventTypes(box.id)).filter((type) => type === 'SessionConnected')).toHaveLength(2);
    await eventually(() => box.peer.asked.filter((kind) => kind === 'hello')).toHaveLength(2);
    expect(box.peer.steps()).toEqual([]);
    expect(await initEvents(box)).toEqual(before);
  });

  it('I-32: a session runs only the missing steps of this start, with their indexes in the whole plan', async () => {
    const box = await world.box(whole);
    box.peer.hello = { stepsDone: ['config', 'git', 'ssh'] };
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(box.peer.steps()).toEqual(['clone', 'post-init', 'agent-ready']);
    const started = (await world.events(box.id)).filter(({ type }) => type === 'InitStepStarted').map(({ data }) => data);
    expect(started).toEqual([
      { step: 'clone', index: 4, count: 6 },
      { step: 'post-init', index: 5, count: 6 },
      { step: 'agent-ready', index: 6, count: 6 },
    ]);
  });

  it('that completed without a record is recorded as completed by the next session', async () => {
    const box = await world.box(whole);
    box.peer.hello = { stepsDone: allSteps };
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(box.peer.steps()).toEqual([]);
    expect((await world.worldview.get(box.id)).init).toMatchObject({ state: 'completed', startCount: 1 });
  });

  it('with unavailable secrets does not fail a prepared start', async () => {
    const box = await world.box({ setup: whole.setup, hello: { stepsDone: allSteps } });
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(await world.row(box.id)).toMatchObject({ observed: 'running' });
  });
});

describe('I-30: a plan fails with the first failed step:', () => {
  it.each(['config', 'git', 'ssh', 'post-init'])('%s', async (step) => {
    const box = await world.box({
      ...whole,
      ...failing(step, ({ id }, session) => {
        session.answer(id, { case: 'stepStarted', value: { pid: 1 } });
        session.answer(id, { case: 'stepOutput', value: { data: Buffer.from('on stdout') } });
        session.answer(id, { case: 'stepOutput', value: { stderr: true, data: Buffer.from('no such ') } });
        session.answer(id, { case: 'stepOutput', value: { stderr: true, data: Buffer.from('thing\n') } });
        session.answer(id, { case: 'stepExited', value: { exit: { code: 3 } } });
      }),
    });
    const index = allSteps.indexOf(step) + 1;
    expect(await failed(box)).toEqual({
      step,
      index,
      count: 6,
      startCount: 1,
      reason: 'exit-code',
      exitCode: 3,
      stderr: 'no such thing\n',
      message: `the step ${step} exited with 3`,
    });
    expect(box.peer.steps()).toEqual(allSteps.slice(0, index));
    expect((await initEvents(box)).slice(-3)).toEqual([`InitStepStarted ${step}`, `InitStepFailed ${step}`, `InitFailed ${step}`]);
    await eventually(async () => await world.row(box.id)).toMatchObject({
      observed: 'failed',
      reason: 'init-failed',
      message: `init failed: the step ${step} exited with 3: no such thing`,
    });
  });

  it('agent-ready, whose failure the host reports', async () => {
    const box = await world.box({
      ...whole,
      ...failing('agent-ready', ({ id }, session) => session.refuse(id, 'command-not-found', 'there is no /bin/nope')),
    });
    expect(await failed(box)).toEqual({
      step: 'agent-ready',
      index: 6,
      count: 6,
      startCount: 1,
      reason: 'spawn-failed',
      message: 'there is no /bin/nope',
    });
    sessions.close(box.id);
    expect(await world.row(box.id)).toMatchObject({ observed: 'running' });
  });

  it('agent-ready, whose failure the host does not report', async () => {
    // The host's time to report the end elapses immediately.
    const clock: Clock = { now: () => Date.now(), sleep: (ms, signal) => systemClock.sleep(ms === endReportMs ? 0 : ms, signal) };
    const impatient = world.sessions({ clock });
    const box = await world.box({
      ...whole,
      ...failing('agent-ready', ({ id }, session) => session.refuse(id, 'command-not-found', 'there is no /bin/nope')),
    });
    impatient.dial(box.id);
    await eventually(async () => await world.row(box.id)).toMatchObject({
      observed: 'failed',
      reason: 'init-failed',
      message: 'init failed: there is no /bin/nope',
    });
  });

  it('with only the end of its stderr', async () => {
    const box = await world.box({
      ...whole,
      ...failing('git', ({ id }, session) => {
        for (let i = 0; i < 10; i++) session.answer(id, { case: 'stepOutput', value: { stderr: true, data: Buffer.alloc(1_000, `${i}`) } });
        session.answer(id, { case: 'stepExited', value: { exit: { code: 1 } } });
      }),
    });
    const stderr = String((await failed(box))['stderr']);
    expect(stderr).toMatch(/^\[5904 bytes truncated\]\n5{96}6{1000}7{1000}8{1000}9{1000}$/);
  });

  const refusals = [
    ['command-not-found', 'spawn-failed'],
    ['command-not-executable', 'spawn-failed'],
    ['path-not-found', 'spawn-failed'],
    ['invalid-argument', 'spawn-failed'],
    ['disk-full', 'io-error'],
    ['internal', 'io-error'],
    ['a-code-of-tomorrow', 'io-error'],
    ['timed-out', 'timeout'],
    ['unimplemented', 'protocol-error'],
  ] as const;
  it.each(refusals)('the error %s of init is %s', async (code, reason) => {
    const box = await world.box({ ...whole, ...failing('git', ({ id }, session) => session.refuse(id, code, 'no')) });
    expect(await failed(box)).toMatchObject({ step: 'git', reason, message: 'no' });
  });

  const answers: readonly (readonly [string, Behaviour, Record<string, unknown>])[] = [
    [
      'it was killed for its time',
      ({ id }, session) => session.answer(id, { case: 'stepExited', value: { exit: { code: 137, signal: 'SIGKILL' }, timedOut: true } }),
      { reason: 'timeout', message: 'the step git took longer than 30 s' },
    ],
    [
      'it was killed by a signal',
      ({ id }, session) => session.answer(id, { case: 'stepExited', value: { exit: { code: 137, signal: 'SIGKILL' } } }),
      { reason: 'exit-code', exitCode: 137, message: 'the step git was ended by SIGKILL' },
    ],
    [
      'the kernel killed it for lack of memory',
      ({ id }, session) => session.answer(id, { case: 'stepExited', value: { exit: { code: 137, outOfMemory: true } } }),
      { reason: 'exit-code', exitCode: 137, message: 'the step git exited with 137: the sandbox ran out of memory' },
    ],
    ['a response of another kind', ({ id }, session) => session.answer(id, { case: 'pong', value: {} }), { reason: 'protocol-error' }],
    ['an exit without a status', ({ id }, session) => session.answer(id, { case: 'stepExited', value: {} }), { reason: 'protocol-error' }],
  ];
  it.each(answers)('%s', async (_, behave, failure) => {
    const box = await world.box({ ...whole, ...failing('git', behave) });
    expect(await failed(box)).toMatchObject({ step: 'git', ...failure });
  });

  it('a missing secret', async () => {
    const box = await world.box({ setup: whole.setup });
    expect(await failed(box)).toMatchObject({ step: 'config', reason: 'io-error', message: expect.stringContaining('NETRC') });
    expect(box.peer.steps()).toEqual([]);
  });
});

describe('a session that breaks within its plan', () => {
  it('is redialled, and the plan runs again', async () => {
    let broken = false;
    const box = await world.box({
      ...whole,
      ...failing('git', (request, session) => {
        if (broken) return good(request, session);
        broken = true;
        return box.peer.cut();
      }),
    });
    const data = await failed(box);
    expect(data).toMatchObject({ step: 'git', reason: 'transport-error' });
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(box.peer.steps()).toEqual(allSteps);
    expect(await world.eventTypes(box.id)).toContain('SessionBroken');
    expect(await world.row(box.id)).toMatchObject({ observed: 'running' });
    expect((await world.worldview.get(box.id)).init).toMatchObject({ state: 'completed' });
  });

  it('repeatedly fails the sandbox', async () => {
    const box = await world.box({ ...whole, ...failing('git', () => box.peer.cut()) });
    sessions.dial(box.id);
    await eventually(async () => await world.row(box.id)).toMatchObject({ observed: 'failed', reason: 'init-failed' });
    expect(box.peer.sessions).toHaveLength(5);
    await eventually(async () => await world.eventTypes(box.id)).toContain('SessionFailed');
  });

  it('because the sandbox ended does not fail the plan', async () => {
    const box = await world.box({ ...whole, ...failing('git', (_, session) => session.mainExited(0)) });
    sessions.dial(box.id);
    await eventually(async () => (sessions.status(box.id).state === 'none' ? await world.eventTypes(box.id) : [])).toContain(
      'InitStepStarted',
    );
    expect(await world.eventTypes(box.id)).not.toContain('InitFailed');
  });

  it('a command that ended before the response to AgentReady counts as started', async () => {
    const box = await world.box({ ...whole, ...failing('agent-ready', (_, session) => session.mainExited(0)) });
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
  });
});

describe('I-33: frames', () => {
  it('with an unknown id are dropped and counted; frames with an unknown payload do not end the session', async () => {
    const box = await world.box({
      ...whole,
      ...failing('git', (request, session) => {
        session.answer(99n, { case: 'pong', value: {} });
        session.refuse(98n, 'internal', 'nobody asked');
        session.drift(request.id);
        session.drift(0n);
        good(request, session);
        // The id of a completed request is unknown.
        session.answer(request.id, { case: 'stepOutput', value: {} });
      }),
    });
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(box.peer.sessions).toHaveLength(1);
    expect(sessions.stats()).toEqual({ connecting: 0, connected: 1, droppedFrames: 3 });
  });
});

describe('a failed init of a start that the store does not hold yet', () => {
  it('is written as soon as the store holds the start', async () => {
    const box = await world.box({
      ...whole,
      state: 'STARTING',
      ...failing('git', ({ id }, session) => session.refuse(id, 'internal', 'no')),
    });
    expect(await failed(box)).toMatchObject({ startCount: 2 });
    await eventually(async () => (await world.row(box.id)).observed).toBe('failed');
  });
});
