import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { hasCode, type SandboxId } from '@drover/foundation';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { CreateRequest, Limits, Runtime } from './runtime.ts';

/** What a sandbox's main process does in the suite; each harness says it in its own words. */
export type Behaviour =
  | { readonly kind: 'run' }
  | { readonly kind: 'exit'; readonly code: number }
  | { readonly kind: 'die'; readonly signal: 'SIGKILL' | 'SIGTERM' }
  | { readonly kind: 'missing-program' }
  | { readonly kind: 'eat-memory' }
  | { readonly kind: 'burn-cpu' }
  /** Starts this many processes more, exits 0 when all run and 1 when one could not be started. */
  | { readonly kind: 'fork'; readonly processes: number }
  /** Exits 0 when a file made by an earlier start is there, 1 (and makes it) when not. */
  | { readonly kind: 'remember' };

/** One host's worth of what a runtime needs, made for one test and removed after it. */
export interface Harness {
  readonly runtime: Runtime;
  /** The same host after the agent was restarted. */
  restarted(): Runtime;
  request(behaviour: Behaviour, limits?: Partial<Limits>): Promise<CreateRequest>;
  /** The request again, for another start with another behaviour. */
  again(request: CreateRequest, behaviour: Behaviour): Promise<CreateRequest>;
  /** Creates the sandbox in another process (or its like), which is killed: after the create, or `midwayMs` into it. */
  createAndCrash(request: CreateRequest, midwayMs?: number): Promise<void>;
  /** Whatever there is of the sandbox on the host: mounts, cgroups, directories, processes. */
  leftovers(id: SandboxId): Promise<readonly string[]>;
  close(): Promise<void>;
}

const noLimits: Limits = { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0, shmBytes: 0 };
export const limitsOf = (limits: Partial<Limits> = {}): Limits => ({ ...noLimits, ...limits });
const mebibyte = 1024 * 1024;

/** What every runtime must do (spec 5.2). */
export function describeRuntime(name: string, open: () => Promise<Harness>): void {
  describe(`the ${name} runtime`, () => {
    let harness: Harness;
    let runtime: Runtime;
    const made: SandboxId[] = [];
    const lifetime = (): AbortSignal => AbortSignal.timeout(15_000);

    beforeAll(async () => {
      harness = await open();
      runtime = harness.runtime;
    });
    afterEach(async () => {
      for (const id of made.splice(0)) await runtime.destroy(id);
    });
    afterAll(async () => {
      await harness.close();
    });

    const request = async (behaviour: Behaviour, limits?: Partial<Limits>): Promise<CreateRequest> => {
      const made_ = await harness.request(behaviour, limits);
      made.push(made_.id);
      return made_;
    };
    const create = async (behaviour: Behaviour, limits?: Partial<Limits>): Promise<CreateRequest> => {
      const asked = await request(behaviour, limits);
      await runtime.create(asked, lifetime());
      return asked;
    };
    const ended = async (id: SandboxId) => {
      await runtime.waitExit(id, lifetime());
      return await runtime.inspect(id);
    };

    test('R-5: create starts it, inspect says so, and creating again does nothing', async () => {
      const asked = await create({ kind: 'run' });
      const state = await runtime.inspect(asked.id);
      expect(state).toMatchObject({ phase: 'running', exitCode: undefined, outOfMemory: false, finishedAt: undefined });
      await runtime.create(asked, lifetime());
      expect((await runtime.inspect(asked.id))?.pid).toBe(state?.pid);
      expect(await runtime.list()).toContain(asked.id);
    });

    test('L-19: of what is not there, inspect is undefined, kill, destroy and waitExit do nothing, and the rest says not found', async () => {
      const asked = await request({ kind: 'run' });
      expect(await runtime.inspect(asked.id)).toBeUndefined();
      await runtime.kill(asked.id, 'SIGKILL');
      await runtime.destroy(asked.id);
      await runtime.waitExit(asked.id, lifetime());
      const refused = [
        () => runtime.start(asked, lifetime()),
        () => runtime.pause(asked.id),
        () => runtime.resume(asked.id),
        () => runtime.dial(asked.id, 'init', lifetime()),
      ];
      for (const act of refused) await expect(act()).rejects.toSatisfy((error) => hasCode(error, 'sandbox-not-found'));
    });

    test.each([0, 1, 7, 255])("I-37: its exit code is the main process's, %i", async (code) => {
      const asked = await create({ kind: 'exit', code });
      const state = await ended(asked.id);
      expect(state).toMatchObject({ phase: 'ended', exitCode: code, outOfMemory: false, pid: undefined });
      expect(state?.finishedAt).toBeGreaterThanOrEqual(state?.startedAt ?? Number.POSITIVE_INFINITY);
    });

    test.each([
      ['SIGKILL', 137],
      ['SIGTERM', 143],
    ] as const)('I-37: a main process that dies of %s counts as 128 and the signal', async (signal, code) => {
      const asked = await create({ kind: 'die', signal });
      expect(await ended(asked.id)).toMatchObject({ exitCode: code, outOfMemory: false });
    });

    test('I-37: SIGTERM lets init stop the main process', async () => {
      const asked = await create({ kind: 'run' });
      (await runtime.dial(asked.id, 'init', lifetime())).destroy();
      await runtime.kill(asked.id, 'SIGTERM');
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended', exitCode: 143 });
    });

    test('I-37: SIGKILL ends it without a word: 137', async () => {
      const asked = await create({ kind: 'run' });
      await runtime.kill(asked.id, 'SIGKILL');
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended', exitCode: 137, outOfMemory: false });
      await runtime.kill(asked.id, 'SIGKILL');
    });

    test('a main process that cannot be started is told from one that failed', async () => {
      const asked = await create({ kind: 'missing-program' });
      const state = await ended(asked.id);
      expect(state?.exitCode).toBe(127);
      expect(state?.startFailure).toContain('ENOENT');
    });

    test('start runs it again with what it had written, and does nothing while it runs', async () => {
      const asked = await create({ kind: 'remember' });
      expect(await ended(asked.id)).toMatchObject({ exitCode: 1 });
      await runtime.start(await harness.again(asked, { kind: 'remember' }), lifetime());
      expect(await ended(asked.id)).toMatchObject({ exitCode: 0 });
      await runtime.start(await harness.again(asked, { kind: 'run' }), lifetime());
      const state = await runtime.inspect(asked.id);
      expect(state).toMatchObject({ phase: 'running', exitCode: undefined });
      await runtime.start(asked, lifetime());
      expect((await runtime.inspect(asked.id))?.pid).toBe(state?.pid);
    });

    test('R-20: pause and resume, each twice', async () => {
      const asked = await create({ kind: 'run' });
      for (const [act, phase] of [
        ['pause', 'paused'],
        ['pause', 'paused'],
        ['resume', 'running'],
        ['resume', 'running'],
      ] as const) {
        await runtime[act](asked.id);
        expect(await runtime.inspect(asked.id)).toMatchObject({ phase });
      }
    });

    test('a paused sandbox dies of SIGKILL, and can be destroyed', async () => {
      const [killed, destroyed] = [await create({ kind: 'run' }), await create({ kind: 'run' })];
      for (const { id } of [killed, destroyed]) await runtime.pause(id);
      await runtime.kill(killed.id, 'SIGKILL');
      expect(await ended(killed.id)).toMatchObject({ phase: 'ended', exitCode: 137 });
      await runtime.destroy(destroyed.id);
      expect(await harness.leftovers(destroyed.id)).toEqual([]);
    });

    test('I-4, R-9: what an earlier agent paused is paused for the next one, whom it is killed by, and resumed for whom it runs on', async () => {
      const [killed, resumed] = [await create({ kind: 'run' }), await create({ kind: 'run' })];
      for (const { id } of [killed, resumed]) await runtime.pause(id);
      const next = harness.restarted();
      for (const { id } of [killed, resumed]) expect(await next.inspect(id)).toMatchObject({ phase: 'paused' });
      await next.kill(killed.id, 'SIGKILL');
      await next.waitExit(killed.id, lifetime());
      expect(await next.inspect(killed.id)).toMatchObject({ phase: 'ended', exitCode: 137 });
      await next.resume(resumed.id);
      const stream = await next.dial(resumed.id, 'init', lifetime());
      stream.end('x');
      expect(await readAll(stream)).toBe('xbye');
    });

    test('dial: bytes both ways, each side ended for itself, and a sandbox that has ended refuses', async () => {
      const asked = await create({ kind: 'run' });
      const stream = await runtime.dial(asked.id, 'init', lifetime());
      const text = Buffer.alloc(300_000, 'drover');
      stream.end(text);
      expect(await readAll(stream)).toBe(`${text.toString()}bye`);
      await runtime.kill(asked.id, 'SIGKILL');
      await runtime.waitExit(asked.id, lifetime());
      await expect(runtime.dial(asked.id, 'init', lifetime())).rejects.toSatisfy((error) => hasCode(error, 'sandbox-not-running'));
    });

    test('waitExit ends for its caller when the caller gives up, and goes on for the others', async () => {
      const asked = await create({ kind: 'run' });
      const impatient = new AbortController();
      const given = runtime.waitExit(asked.id, impatient.signal);
      const other = runtime.waitExit(asked.id, lifetime());
      impatient.abort(new Error('enough'));
      await expect(given).rejects.toThrow('enough');
      await runtime.kill(asked.id, 'SIGKILL');
      await other;
      expect(await runtime.inspect(asked.id)).toMatchObject({ phase: 'ended' });
    });

    test('R-10: too much memory is reported as out of memory, also after a restart of the agent', async () => {
      const asked = await create({ kind: 'eat-memory' }, { memoryBytes: 48 * mebibyte });
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended', exitCode: 137, outOfMemory: true });
      expect(await harness.restarted().inspect(asked.id)).toMatchObject({ outOfMemory: true });
    });

    test('R-10: processes beyond the limit cannot be started', async () => {
      const asked = await create({ kind: 'fork', processes: 60 }, { pids: 20 });
      expect((await ended(asked.id))?.exitCode).not.toBe(0);
      const allowed = await create({ kind: 'fork', processes: 10 }, { pids: 20 });
      expect((await ended(allowed.id))?.exitCode).toBe(0);
    });

    test('R-10: it gets no more CPU than its limit', async () => {
      const asked = await create({ kind: 'burn-cpu' }, { cpuMillis: 200 });
      const used = async (): Promise<number> => (await runtime.stats(asked.id))?.cpuUsec ?? 0;
      const [from, before] = [performance.now(), await used()];
      while ((await used()) - before < 200_000) await new Promise((resolve) => setTimeout(resolve, 10));
      // 200 ms of CPU at a fifth take a second; a period's burst at each end is allowed for.
      expect(performance.now() - from).toBeGreaterThan(700);
    });

    test('R-9: what an agent created that was then killed runs on, is adopted, and keeps its exit code', async () => {
      const asked = await request({ kind: 'run' });
      await harness.createAndCrash(asked);
      const next = harness.restarted();
      expect(await next.inspect(asked.id)).toMatchObject({ phase: 'running' });
      expect(await next.sweep(new Set([asked.id]))).toEqual([]);
      const stream = await next.dial(asked.id, 'init', lifetime());
      stream.end('x');
      expect(await readAll(stream)).toBe('xbye');
      await next.kill(asked.id, 'SIGTERM');
      await next.waitExit(asked.id, lifetime());
      expect(await harness.restarted().inspect(asked.id)).toMatchObject({ phase: 'ended', exitCode: 143 });
    });

    test.each([5, 40, 80])(
      'R-9: an agent killed %i ms into a create leaves nothing that the next create or sweep cannot deal with',
      async (ms) => {
        const [created, swept] = [await request({ kind: 'run' }), await request({ kind: 'run' })];
        await harness.createAndCrash(created, ms);
        await harness.createAndCrash(swept, ms);
        const next = harness.restarted();
        await next.create(created, lifetime());
        expect(await next.inspect(created.id)).toMatchObject({ phase: 'running' });
        await next.sweep(new Set([created.id]));
        expect(await harness.leftovers(swept.id)).toEqual([]);
        expect(await next.inspect(created.id)).toMatchObject({ phase: 'running' });
        await next.destroy(created.id);
        expect(await harness.leftovers(created.id)).toEqual([]);
      },
    );

    test('R-9: destroy leaves nothing, running or ended, and is done at once the second time', async () => {
      const running = await create({ kind: 'run' });
      const done = await create({ kind: 'exit', code: 0 });
      await ended(done.id);
      for (const { id } of [running, done]) {
        await runtime.destroy(id);
        expect(await harness.leftovers(id)).toEqual([]);
        expect(await runtime.inspect(id)).toBeUndefined();
        await runtime.destroy(id);
      }
    });

    test('R-9: sweep removes what nobody knows, and nothing else', async () => {
      const [known, unknown] = [await create({ kind: 'run' }), await create({ kind: 'run' })];
      const swept = await runtime.sweep(new Set([known.id]));
      expect(swept).toContain(unknown.id);
      expect(swept).not.toContain(known.id);
      expect(await harness.leftovers(unknown.id)).toEqual([]);
      expect(await runtime.inspect(known.id)).toMatchObject({ phase: 'running' });
    });

    test('many at once, and the same one twice at once', async () => {
      const all = await Promise.all(Array.from({ length: 6 }, () => request({ kind: 'run' })));
      await Promise.all([...all, ...all.slice(0, 2)].map((asked) => runtime.create(asked, lifetime())));
      const pids = await Promise.all(all.map(async ({ id }) => (await runtime.inspect(id))?.pid));
      expect(new Set(pids).size).toBe(all.length);
      expect(pids).not.toContain(undefined);
      await Promise.all(all.map(({ id }) => runtime.destroy(id)));
      for (const { id } of all) expect(await harness.leftovers(id)).toEqual([]);
    });

    test('a create that was cancelled before it began makes nothing', async () => {
      const asked = await request({ kind: 'run' });
      await expect(runtime.create(asked, AbortSignal.abort(new Error('cancelled')))).rejects.toThrow('cancelled');
      expect(await harness.leftovers(asked.id)).toEqual([]);
    });
  });
}

async function readAll(stream: Duplex): Promise<string> {
  const chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(stream, 'end');
  return Buffer.concat(chunks).toString();
}
