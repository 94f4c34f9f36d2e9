import { DroverError, newSandboxId } from '@drover/foundation';
import { describe, expect, test } from 'vitest';
import { describeBackend, limitsOf, type Behaviour, type Harness } from '../testing/conformance.ts';
import type { StartRequest } from '../backend.ts';
import { FakeBackend, FakeState, type FakeOutcome } from './index.ts';

function requestOf(limits = limitsOf()): StartRequest {
  const id = newSandboxId();
  const nothing = async (): Promise<void> => await Promise.resolve();
  return { id, hostname: 'box', image: 'host', limits, mounts: [], runDirectory: `/run/${id}`, complete: nothing, opening: nothing };
}

/** How a simulated workload ends, if it does. */
function outcomeOf(behaviour: Behaviour, request: StartRequest, remembered: Set<string>): FakeOutcome | undefined {
  switch (behaviour.kind) {
    case 'exit':
      return { exitCode: behaviour.code };
    case 'die':
      return { exitCode: behaviour.signal === 'SIGKILL' ? 137 : 143 };
    case 'missing-program':
      return { exitCode: 127, startFailure: 'spawn ENOENT' };
    case 'eat-memory':
      return request.limits.memoryBytes > 0 ? { exitCode: 137, outOfMemory: true } : undefined;
    case 'fork':
      return { exitCode: behaviour.processes > request.limits.pids ? 1 : 0 };
    case 'remember': {
      const seen = remembered.has(request.id);
      remembered.add(request.id);
      return { exitCode: seen ? 0 : 1 };
    }
    default:
      return undefined;
  }
}

function openFakeHarness(): Promise<Harness> {
  const state = new FakeState();
  const behaviours = new Map<string, Behaviour>();
  const remembered = new Set<string>();
  const open = (): FakeBackend =>
    new FakeBackend({
      state,
      behave: (request, finish) => {
        const outcome = outcomeOf(behaviours.get(request.id) ?? { kind: 'run' }, request, remembered);
        if (outcome !== undefined) setImmediate(() => finish(outcome));
      },
      usage: (request, runningMs) => ({ cpuUsec: runningMs * request.limits.cpuMillis, memoryBytes: 0, pids: 1 }),
    });
  const request: Harness['request'] = (behaviour, limits) => {
    const asked = requestOf(limitsOf(limits));
    behaviours.set(asked.id, behaviour);
    return Promise.resolve(asked);
  };
  return Promise.resolve({
    backend: open(),
    restarted: () => Promise.resolve(open()),
    request,
    again: (asked, behaviour) => {
      behaviours.set(asked.id, behaviour);
      return asked;
    },
    createAndCrash: async (asked, midwayMs) => {
      const crashed = new AbortController();
      const agent = new FakeBackend({ state, latencyMs: { create: 50 } });
      const created = agent.create(asked, crashed.signal);
      if (midwayMs === undefined) return await created;
      setTimeout(() => crashed.abort(new Error('killed')), midwayMs);
      await created.catch(() => undefined);
    },
    leftovers: (id) => Promise.resolve([state.sandboxes, state.networks, state.images].flatMap((each) => (each.has(id) ? [id] : []))),
    close: () => Promise.resolve(),
  });
}

describeBackend('fake', openFakeHarness);

describe('the fake backend, as a tool of tests', () => {
  test('R-8: fails as requested, before anything is done', async () => {
    const backend = new FakeBackend({ fail: (operation) => (operation === 'create' ? new DroverError('disk-full', 'full') : undefined) });
    await expect(backend.create(requestOf(), new AbortController().signal)).rejects.toThrow('full');
    expect(await backend.sweep(new Set())).toEqual([]);
  });

  test('R-8: the far end of a connection can be replaced, and is cut when the sandbox ends', async () => {
    const { duplexPair } = await import('node:stream');
    const [near, far] = duplexPair();
    const backend = new FakeBackend({ connect: () => near });
    const request = requestOf();
    await backend.create(request, new AbortController().signal);
    expect(await backend.dial(request.id, 4711, new AbortController().signal)).toBe(near);
    backend.finish(request.id, { exitCode: 3 });
    expect(near.destroyed).toBe(true);
    far.destroy();
  });

  test('R-8: the workload of an earlier start cannot end a later one', async () => {
    const finishes: ((outcome: FakeOutcome) => void)[] = [];
    const backend = new FakeBackend({ behave: (_, finish) => void finishes.push(finish) });
    const request = requestOf();
    await backend.create(request, new AbortController().signal);
    await backend.kill(request.id, 'SIGKILL');
    await backend.start(request, new AbortController().signal);
    finishes[0]?.({ exitCode: 9 });
    expect(await backend.inspect(request.id)).toMatchObject({ phase: 'running' });
  });
});
