import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { DroverError, hasCode, type SandboxId } from '@drover/foundation';
import { parseAllowList } from '@drover/spec/policy';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { noLimits, type Backend, type Limits, type StartRequest } from '../backend.ts';

/** What a sandbox's main process does in the suite; each harness translates it. */
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

/** A host for one backend, made for one test file and removed after it. */
export interface Harness {
  /** Opened. */
  readonly backend: Backend;
  /** Another backend over the same host, as after a restart of the agent. */
  restarted(): Promise<Backend>;
  request(behaviour: Behaviour, limits?: Partial<Limits>): Promise<StartRequest>;
  /** The request for a further start with another behaviour. */
  again(request: StartRequest, behaviour: Behaviour): StartRequest;
  /** Creates the sandbox in another agent, which is killed: after the create, or `midwayMs` into it. */
  createAndCrash(request: StartRequest, midwayMs?: number): Promise<void>;
  /** What exists of the sandbox on the host: mounts, cgroups, directories, processes, addresses, image holds. */
  leftovers(id: SandboxId): Promise<readonly string[]>;
  close(): Promise<void>;
}

export const limitsOf = (limits: Partial<Limits> = {}): Limits => ({ ...noLimits, ...limits });
const mebibyte = 1024 * 1024;

/** What every backend must do (spec 5). */
export function describeBackend(name: string, open: () => Promise<Harness>): void {
  describe(`the ${name} backend`, () => {
    let harness: Harness;
    let backend: Backend;
    const made: SandboxId[] = [];
    const lifetime = (): AbortSignal => AbortSignal.timeout(15_000);

    beforeAll(async () => {
      harness = await open();
      backend = harness.backend;
    });
    afterEach(async () => {
      for (const id of made.splice(0)) await backend.destroy(id);
    });
    afterAll(async () => {
      await harness.close();
    });

    const request = async (behaviour: Behaviour, limits?: Partial<Limits>): Promise<StartRequest> => {
      const made_ = await harness.request(behaviour, limits);
      made.push(made_.id);
      return made_;
    };
    const create = async (behaviour: Behaviour, limits?: Partial<Limits>): Promise<StartRequest> => {
      const asked = await request(behaviour, limits);
      await backend.create(asked, lifetime());
      return asked;
    };
    const ended = async (id: SandboxId) => {
      await backend.waitExit(id, lifetime());
      return await backend.inspect(id);
    };

    test('R-5: create starts it, inspect returns it as running, and creating again does nothing', async () => {
      const asked = await create({ kind: 'run' });
      const state = await backend.inspect(asked.id);
      expect(state).toMatchObject({ phase: 'running', exitCode: undefined, outOfMemory: false, finishedAt: undefined });
      await backend.create(asked, lifetime());
      expect((await backend.inspect(asked.id))?.pid).toBe(state?.pid);
    });

    test('L-19: without the sandbox, inspect is undefined; kill, release, destroy and waitExit do nothing; the rest fails with not found', async () => {
      const asked = await request({ kind: 'run' });
      expect(await backend.inspect(asked.id)).toBeUndefined();
      await backend.kill(asked.id, 'SIGKILL');
      await backend.release(asked.id);
      await backend.destroy(asked.id);
      await backend.waitExit(asked.id, lifetime());
      const refused = [
        () => backend.start(asked, lifetime()),
        () => backend.pause(asked.id),
        () => backend.resume(asked.id),
        () => backend.dial(asked.id, 'init', lifetime()),
        () => backend.setCut(asked.id, true),
        () => backend.setRegistrationClosed(asked.id, true),
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
      (await backend.dial(asked.id, 'init', lifetime())).destroy();
      await backend.kill(asked.id, 'SIGTERM');
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended', exitCode: 143 });
    });

    test('I-37: SIGKILL ends it without an exit record: 137', async () => {
      const asked = await create({ kind: 'run' });
      await backend.kill(asked.id, 'SIGKILL');
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended', exitCode: 137, outOfMemory: false });
      await backend.kill(asked.id, 'SIGKILL');
    });

    test('a main process that could not be started differs from one that failed', async () => {
      const asked = await create({ kind: 'missing-program' });
      const state = await ended(asked.id);
      expect(state?.exitCode).toBe(127);
      expect(state?.startFailure).toContain('ENOENT');
    });

    test('start runs it again with what it had written, and does nothing while it runs', async () => {
      const asked = await create({ kind: 'remember' });
      expect(await ended(asked.id)).toMatchObject({ exitCode: 1 });
      await backend.start(harness.again(asked, { kind: 'remember' }), lifetime());
      expect(await ended(asked.id)).toMatchObject({ exitCode: 0 });
      await backend.start(harness.again(asked, { kind: 'run' }), lifetime());
      const state = await backend.inspect(asked.id);
      expect(state).toMatchObject({ phase: 'running', exitCode: undefined });
      await backend.start(asked, lifetime());
      expect((await backend.inspect(asked.id))?.pid).toBe(state?.pid);
    });

    test('R-20: pause and resume, each twice', async () => {
      const asked = await create({ kind: 'run' });
      for (const [act, phase] of [
        ['pause', 'paused'],
        ['pause', 'paused'],
        ['resume', 'running'],
        ['resume', 'running'],
      ] as const) {
        await backend[act](asked.id);
        expect(await backend.inspect(asked.id)).toMatchObject({ phase });
      }
    });

    test('a paused sandbox dies of SIGKILL, and can be destroyed', async () => {
      const [killed, destroyed] = [await create({ kind: 'run' }), await create({ kind: 'run' })];
      for (const { id } of [killed, destroyed]) await backend.pause(id);
      await backend.kill(killed.id, 'SIGKILL');
      expect(await ended(killed.id)).toMatchObject({ phase: 'ended', exitCode: 137 });
      await backend.destroy(destroyed.id);
      expect(await harness.leftovers(destroyed.id)).toEqual([]);
    });

    test('I-4, R-9: what an earlier agent paused is paused for the next one, whom it is killed by, and resumed for whom it runs on', async () => {
      const [killed, resumed] = [await create({ kind: 'run' }), await create({ kind: 'run' })];
      for (const { id } of [killed, resumed]) await backend.pause(id);
      const next = await harness.restarted();
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
      const stream = await backend.dial(asked.id, 'init', lifetime());
      const text = Buffer.alloc(300_000, 'drover');
      stream.end(text);
      expect(await readAll(stream)).toBe(`${text.toString()}bye`);
      await backend.kill(asked.id, 'SIGKILL');
      await backend.waitExit(asked.id, lifetime());
      await expect(backend.dial(asked.id, 'init', lifetime())).rejects.toSatisfy((error) => hasCode(error, 'sandbox-not-running'));
    });

    test('waitExit ends for the caller that aborts, and continues for the others', async () => {
      const asked = await create({ kind: 'run' });
      const impatient = new AbortController();
      const given = backend.waitExit(asked.id, impatient.signal);
      const other = backend.waitExit(asked.id, lifetime());
      impatient.abort(new Error('enough'));
      await expect(given).rejects.toThrow('enough');
      await backend.kill(asked.id, 'SIGKILL');
      await other;
      expect(await backend.inspect(asked.id)).toMatchObject({ phase: 'ended' });
    });

    test('R-10: too much memory is reported as out of memory, after a restart of the agent too', async () => {
      const asked = await create({ kind: 'eat-memory' }, { memoryBytes: 48 * mebibyte });
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended', exitCode: 137, outOfMemory: true });
      expect(await (await harness.restarted()).inspect(asked.id)).toMatchObject({ outOfMemory: true });
    });

    test('R-10: processes beyond the limit cannot be started', async () => {
      const asked = await create({ kind: 'fork', processes: 60 }, { pids: 20 });
      expect((await ended(asked.id))?.exitCode).not.toBe(0);
      const allowed = await create({ kind: 'fork', processes: 10 }, { pids: 20 });
      expect((await ended(allowed.id))?.exitCode).toBe(0);
    });

    test('R-10: a sandbox uses no more CPU than its limit', async () => {
      const asked = await create({ kind: 'burn-cpu' }, { cpuMillis: 200 });
      const used = async (): Promise<number> => (await backend.stats(asked.id))?.cpuUsec ?? 0;
      const [from, before] = [performance.now(), await used()];
      while ((await used()) - before < 200_000) await new Promise((resolve) => setTimeout(resolve, 10));
      // 200 ms of CPU at a fifth take a second; a period's burst at each end is allowed for.
      expect(performance.now() - from).toBeGreaterThan(700);
    });

    test('R-9: a sandbox of a killed agent runs on, is adopted, and keeps its exit code', async () => {
      const asked = await request({ kind: 'run' });
      await harness.createAndCrash(asked);
      const next = await harness.restarted();
      expect(await next.inspect(asked.id)).toMatchObject({ phase: 'running' });
      expect(await next.sweep(new Set([asked.id]))).toEqual([]);
      const stream = await next.dial(asked.id, 'init', lifetime());
      stream.end('x');
      expect(await readAll(stream)).toBe('xbye');
      await next.kill(asked.id, 'SIGTERM');
      await next.waitExit(asked.id, lifetime());
      expect(await (await harness.restarted()).inspect(asked.id)).toMatchObject({ phase: 'ended', exitCode: 143 });
    });

    test.each([5, 40, 80])(
      'R-9: after an agent that was killed %i ms into a create, the next create succeeds and a sweep leaves nothing',
      async (ms) => {
        const [created, swept] = [await request({ kind: 'run' }), await request({ kind: 'run' })];
        await harness.createAndCrash(created, ms);
        await harness.createAndCrash(swept, ms);
        const next = await harness.restarted();
        await next.create(created, lifetime());
        expect(await next.inspect(created.id)).toMatchObject({ phase: 'running' });
        await next.sweep(new Set([created.id]));
        expect(await harness.leftovers(swept.id)).toEqual([]);
        expect(await next.inspect(created.id)).toMatchObject({ phase: 'running' });
        await next.destroy(created.id);
        expect(await harness.leftovers(created.id)).toEqual([]);
      },
    );

    test('R-9: destroy leaves nothing of a running or ended sandbox, and does nothing the second time', async () => {
      const running = await create({ kind: 'run' });
      const done = await create({ kind: 'exit', code: 0 });
      await ended(done.id);
      for (const { id } of [running, done]) {
        await backend.destroy(id);
        expect(await harness.leftovers(id)).toEqual([]);
        expect(await backend.inspect(id)).toBeUndefined();
        await backend.destroy(id);
      }
    });

    test('R-9: sweep removes unknown sandboxes, and nothing else', async () => {
      const [known, unknown] = [await create({ kind: 'run' }), await create({ kind: 'run' })];
      const swept = await backend.sweep(new Set([known.id]));
      expect(swept).toContain(unknown.id);
      expect(swept).not.toContain(known.id);
      expect(await harness.leftovers(unknown.id)).toEqual([]);
      expect(await backend.inspect(known.id)).toMatchObject({ phase: 'running' });
    });

    test('many concurrently, and the same one twice concurrently', async () => {
      const all = await Promise.all(Array.from({ length: 6 }, () => request({ kind: 'run' })));
      await Promise.all([...all, ...all.slice(0, 2)].map((asked) => backend.create(asked, lifetime())));
      const pids = await Promise.all(all.map(async ({ id }) => (await backend.inspect(id))?.pid));
      expect(new Set(pids).size).toBe(all.length);
      expect(pids).not.toContain(undefined);
      await Promise.all(all.map(({ id }) => backend.destroy(id)));
      for (const { id } of all) expect(await harness.leftovers(id)).toEqual([]);
    });

    test('R-9: a create that fails leaves nothing, whether at the run directory or at its record', async () => {
      const refusal = new DroverError('permission-denied', 'not placed on this host');
      for (const change of [
        { complete: async () => await Promise.reject(refusal) },
        { opening: async () => await Promise.reject(refusal) },
      ]) {
        const asked = { ...(await request({ kind: 'run' })), ...change };
        await expect(backend.create(asked, lifetime())).rejects.toBe(refusal);
        expect(await backend.inspect(asked.id)).toBeUndefined();
        expect(await harness.leftovers(asked.id)).toEqual([]);
      }
    });

    test('R-9: a start that fails leaves the sandbox ended, and the next start has its root', async () => {
      const asked = await create({ kind: 'remember' });
      await ended(asked.id);
      const refusal = new DroverError('permission-denied', 'not placed on this host');
      const refused = { ...harness.again(asked, { kind: 'remember' }), complete: async () => await Promise.reject(refusal) };
      await expect(backend.start(refused, lifetime())).rejects.toBe(refusal);
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended' });
      await backend.start(harness.again(asked, { kind: 'remember' }), lifetime());
      expect(await ended(asked.id)).toMatchObject({ exitCode: 0 });
    });

    test('I-6: nothing of the workload runs before the run directory is complete and the start is on record', async () => {
      const asked = await request({ kind: 'exit', code: 5 });
      const steps: string[] = [];
      const complete: StartRequest['complete'] = async (prepared, signal) => {
        await asked.complete(prepared, signal);
        expect(prepared.addresses.address).not.toBe('');
        steps.push('complete');
      };
      const opening = async (): Promise<void> => {
        steps.push('opening');
        expect((await backend.inspect(asked.id))?.phase).not.toBe('ended');
        await Promise.resolve();
      };
      await backend.create({ ...asked, complete, opening }, lifetime());
      expect(steps).toEqual(['complete', 'opening']);
      expect(await ended(asked.id)).toMatchObject({ exitCode: 5 });
    });

    test('I-4: network and registration port are closed and opened, repeatedly, while it has a network', async () => {
      const asked = await create({ kind: 'run' });
      await backend.applyPolicy(asked.id, parseAllowList(['example.com']));
      for (const closed of [true, true, false, false]) {
        await backend.setCut(asked.id, closed);
        await backend.setRegistrationClosed(asked.id, closed);
      }
      await backend.release(asked.id);
      expect(await ended(asked.id)).toMatchObject({ phase: 'ended', exitCode: 137 });
      await expect(backend.setCut(asked.id, true)).rejects.toMatchObject({ code: 'sandbox-not-found' });
    });

    test('a create that was cancelled before it began makes nothing', async () => {
      const asked = await request({ kind: 'run' });
      await expect(backend.create(asked, AbortSignal.abort(new Error('cancelled')))).rejects.toThrow('cancelled');
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
