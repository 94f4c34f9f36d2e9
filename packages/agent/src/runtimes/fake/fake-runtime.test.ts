import { DroverError, newSandboxId } from '@drover/foundation';
import { describe, expect, test } from 'vitest';
import { describeRuntime, limitsOf, type Behaviour, type Harness } from '../conformance.ts';
import type { CreateRequest } from '../runtime.ts';
import { FakeRuntime, FakeState, type FakeOutcome } from './index.ts';

function requestOf(limits = limitsOf()): CreateRequest {
  const id = newSandboxId();
  const network = { namespacePath: '', address: '', gatewayAddress: '', proxyPort: 0, controlPort: 0, interface: '' };
  return { id, hostname: 'box', layers: [], network, limits, mounts: [], initDirectory: '/', runDirectory: `/run/${id}` };
}

/** A simulated workload: how it ends by itself, if it does. */
function outcomeOf(behaviour: Behaviour, request: CreateRequest, remembered: Set<string>): FakeOutcome | undefined {
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
  const open = (): FakeRuntime =>
    new FakeRuntime({
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
    runtime: open(),
    restarted: open,
    request,
    again: (asked, behaviour) => {
      behaviours.set(asked.id, behaviour);
      return Promise.resolve(asked);
    },
    createAndCrash: async (asked, midwayMs) => {
      const crashed = new AbortController();
      const agent = new FakeRuntime({ state, latencyMs: { create: 50 } });
      const created = agent.create(asked, crashed.signal);
      if (midwayMs === undefined) return await created;
      setTimeout(() => crashed.abort(new Error('killed')), midwayMs);
      await created.catch(() => undefined);
    },
    leftovers: (id) => Promise.resolve(state.sandboxes.has(id) ? [id] : []),
    close: () => Promise.resolve(),
  });
}

describeRuntime('fake', openFakeHarness);

describe('the fake runtime, as a tool of tests', () => {
  test('R-8: fails as it is told, before anything was done', async () => {
    const runtime = new FakeRuntime({ fail: (operation) => (operation === 'create' ? new DroverError('disk-full', 'full') : undefined) });
    await expect(runtime.create(requestOf(), new AbortController().signal)).rejects.toThrow('full');
    expect(await runtime.list()).toEqual([]);
  });

  test('R-8: an end of a connection can be plugged in, and is cut when the sandbox ends', async () => {
    const { duplexPair } = await import('node:stream');
    const [near, far] = duplexPair();
    const runtime = new FakeRuntime({ connect: () => near });
    const request = requestOf();
    await runtime.create(request, new AbortController().signal);
    expect(await runtime.dial(request.id, 4711, new AbortController().signal)).toBe(near);
    runtime.finish(request.id, { exitCode: 3 });
    expect(near.destroyed).toBe(true);
    far.destroy();
  });

  test("R-8: what an earlier start's workload says does not end a later start", async () => {
    const finishes: ((outcome: FakeOutcome) => void)[] = [];
    const runtime = new FakeRuntime({ behave: (_, finish) => void finishes.push(finish) });
    const request = requestOf();
    await runtime.create(request, new AbortController().signal);
    await runtime.kill(request.id, 'SIGKILL');
    await runtime.start(request, new AbortController().signal);
    finishes[0]?.({ exitCode: 9 });
    expect(await runtime.inspect(request.id)).toMatchObject({ phase: 'running' });
  });
});
