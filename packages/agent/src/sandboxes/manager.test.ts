import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { DroverError, FakeClock, newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { namesOf, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { sandbox } from '@drover/protocol';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { resourceCheckMs, secretsTmpfsSize } from '../limits.ts';
import { FakeBackend, FakeState, type FakeBackendOptions, type FakeOperation } from '../backends/fake/index.ts';
import type { Exhausted } from '../backends/index.ts';
import {
  receiveSpec,
  SandboxManager,
  type CreateCommand,
  type NetworkClosure,
  type ReceivedSpec,
  type SandboxCommand,
  type SandboxManagerOptions,
  type StartCommand,
  type StopCommand,
} from './index.ts';
import { VolumeStore } from '../volumes/index.ts';

const { SandboxState } = sandbox;

let directory: string;
let ca: CertificateAuthority;
let life: AbortController;
let state: FakeState;
/** What a pull of an image does. */
let pull: NonNullable<FakeBackendOptions['pull']>;
/** Thrown when a policy is to be put in force. */
let refusal: DroverError | undefined;
let isCutFailing: boolean;
let signed: number;
let beforeSigning: (signal: AbortSignal) => Promise<void>;
const managers: SandboxManager[] = [];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-sandboxes-'));
  ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover.test' });
  life = new AbortController();
  state = new FakeState();
  pull = async () => await Promise.resolve();
  refusal = undefined;
  isCutFailing = false;
  signed = 0;
  beforeSigning = async () => await Promise.resolve();
});
afterEach(async () => {
  life.abort(new DroverError('cancelled', 'the test is over'));
  for (const manager of managers.splice(0)) await manager.close();
  await rm(directory, { recursive: true, force: true });
});

/** An agent's manager over the state of this test's host; a second one is the agent after a restart. */
async function open(
  options: FakeBackendOptions = {},
  Kind: typeof FakeBackend = FakeBackend,
  more: Partial<SandboxManagerOptions> = {},
): Promise<SandboxManager> {
  const manager = new SandboxManager({
    report: () => undefined,
    stateDirectory: directory,
    backends: [new Kind({ state, pull: async (...args) => await pull(...args), fail, ...options })],
    volumes: new VolumeStore(join(directory, 'volumes')),
    names: namesOf('drover.test'),
    sign: async (id, csrDer, signal) => {
      await beforeSigning(signal);
      return {
        ...(await ca.signSandbox(id, 'web', csrDer)),
        caPem: ca.caPem,
        bootstrapToken: `token ${++signed} of ${id}`,
      };
    },
    bootId: 'boot',
    allowedMounts: ['/srv/shared'],
    logger: silentLogger,
    signal: life.signal,
    ...more,
  });
  managers.push(manager);
  await manager.open();
  return manager;
}

const fail = (operation: FakeOperation): DroverError | undefined => {
  if (operation === 'applyPolicy') return refusal;
  return operation === 'setCut' && isCutFailing ? new DroverError('runtime-failed', 'nft failed') : undefined;
};

const notClosed = { networkCut: false, registrationClosed: false };
const ref = (id: SandboxId, generation = 1): SandboxCommand => ({ id, generation });
const specOf = (spec: Parameters<typeof create<typeof sandbox.SandboxSpecSchema>>[1] = {}): ReceivedSpec =>
  receiveSpec(create(sandbox.SandboxSpecSchema, { image: 'host', command: ['true'], allow: ['example.com'], ...spec }));
const createCommand = (id: SandboxId, spec = specOf(), more: Partial<CreateCommand> = {}): CreateCommand => ({
  ...ref(id),
  project: '',
  name: 'web',
  spec,
  secrets: [],
  ...notClosed,
  ...more,
});
const start = (id: SandboxId, generation: number, more: Partial<StartCommand> = {}): StartCommand => ({
  ...ref(id, generation),
  secrets: [],
  ...notClosed,
  ...more,
});
const stop = (id: SandboxId, generation: number, graceMs = 0): StopCommand => ({ id, generation, graceMs });
const quiet = (): void => undefined;

async function stateOf(manager: SandboxManager, id: SandboxId, wanted: sandbox.SandboxState): Promise<sandbox.SandboxObservation> {
  return await vi.waitFor(async () => {
    const seen = manager.inspect(id);
    expect(seen.state).toBe(wanted);
    return seen;
  });
}

/** Nothing of the sandbox is left on the host. */
async function expectNoTrace(id: SandboxId): Promise<void> {
  expect({
    runtime: state.sandboxes.has(id),
    address: state.networks.has(id),
    image: state.images.has(id),
    run: existsSync(join(directory, 'run', id)),
  }).toEqual({ runtime: false, address: false, image: false, run: false });
  await Promise.resolve();
}

describe('create', () => {
  test('gives the sandbox its image, address, policy and the material of one start, readable by its owner alone (I-6)', async () => {
    const manager = await open();
    const id = newSandboxId();
    const seen = await manager.create(createCommand(id), quiet);
    expect(seen).toMatchObject({
      state: SandboxState.RUNNING,
      startCount: 1n,
      address: '10.0.0.2',
      imageDigest: 'sha256:00',
      generation: 1n,
    });
    expect(state.networks.get(id)?.allow).toEqual(['example.com']);
    expect(state.images.has(id)).toBe(true);
    const run = join(directory, 'run', id);
    const config = JSON.parse(await readFile(join(run, 'config.json'), 'utf8')) as { main: { argv: string[]; env: string[] } };
    expect(config).toMatchObject({
      sandboxId: id,
      controlPlaneUri: 'spiffe://drover.test/control-plane',
      startCount: 1,
      main: { argv: ['true'] },
    });
    expect(config.main.env).toContain('HTTP_PROXY=http://10.0.0.1:3128');
    for (const file of await readdir(run)) expect([file, (await stat(join(run, file))).mode & 0o777]).toEqual([file, 0o400]);
    expect((await stat(run)).mode & 0o777).toBe(0o700);
  });

  test('R-9: a sandbox that makes directories of what it was given is stopped and started like any other', async () => {
    const manager = await open();
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    const run = join(directory, 'run', id);
    await rm(join(run, 'token'));
    for (const name of ['token', 'exit.json']) await mkdir(join(run, name, 'deep', 'down'), { recursive: true });
    expect(await manager.stop(stop(id, 2))).toMatchObject({ state: SandboxState.STOPPED });
    await manager.start(start(id, 3));
    expect(await readFile(join(run, 'token'), 'utf8')).toBe(`token 2 of ${id}`);
  });

  test('I-13: init is told where it registers, as whom, and with which token; what it left of that goes with the start', async () => {
    const manager = await open();
    const id = newSandboxId();
    const run = join(directory, 'run', id);
    await manager.create(createCommand(id, specOf(), { project: 'blue' }), quiet);
    expect(JSON.parse(await readFile(join(run, 'config.json'), 'utf8'))).toMatchObject({
      project: 'blue',
      name: 'web',
      control: { host: '10.0.0.1', port: 9181 },
    });
    expect(await readFile(join(run, 'token'), 'utf8')).toBe(`token 1 of ${id}`);
    await manager.stop(stop(id, 2));
    expect(await readdir(run)).toEqual([]);
    await manager.start(start(id, 3));
    expect(await readFile(join(run, 'token'), 'utf8')).toBe(`token 2 of ${id}`);
  });

  test('L-19: repeated, it returns the sandbox that exists and starts nothing twice', async () => {
    const starts: string[] = [];
    const manager = await open({ behave: (request) => void starts.push(request.id) });
    const id = newSandboxId();
    const both = await Promise.all([manager.create(createCommand(id), quiet), manager.create(createCommand(id), quiet)]);
    expect(both.map((seen) => seen.startCount)).toEqual([1n, 1n]);
    expect(starts).toEqual([id]);
  });

  test('what fails is taken back, says why, and can be tried again', async () => {
    const manager = await open();
    const id = newSandboxId();
    pull = async () =>
      await Promise.reject(new DroverError('registry-unreachable', 'the registry does not answer', { hint: 'look at the network' }));
    await expect(manager.create(createCommand(id), quiet)).rejects.toMatchObject({ code: 'registry-unreachable' });
    expect(manager.inspect(id)).toMatchObject({
      state: SandboxState.FAILED,
      reason: 'registry-unreachable',
      message: 'the registry does not answer',
      hint: 'look at the network',
    });
    await expectNoTrace(id);
    pull = async () => await Promise.resolve();
    expect(await manager.create(createCommand(id), quiet)).toMatchObject({ state: SandboxState.RUNNING, startCount: 1n });
  });

  test('L-22: what may pass does not fail it: nothing is left of the try, and it is still to be made', async () => {
    const manager = await open();
    const id = newSandboxId();
    refusal = new DroverError('unavailable', 'the gateway does not answer');
    const states: sandbox.SandboxState[] = [];
    manager.onObserved(({ state: at }) => states.push(at));
    await expect(manager.create(createCommand(id), quiet)).rejects.toMatchObject({ code: 'unavailable' });
    const toBeMade = { state: SandboxState.PREPARING, startCount: 0n, reason: 'unavailable', message: 'the gateway does not answer' };
    expect(manager.inspect(id)).toMatchObject(toBeMade);
    await expectNoTrace(id);
    refusal = undefined;
    expect(await manager.create(createCommand(id), quiet)).toMatchObject({ state: SandboxState.RUNNING, startCount: 1n });
    expect(states).not.toContain(SandboxState.FAILED);

    await manager.stop(stop(id, 2));
    refusal = new DroverError('unavailable', 'the gateway does not answer');
    await expect(manager.start(start(id, 3))).rejects.toMatchObject({ code: 'unavailable' });
    expect(manager.inspect(id)).toMatchObject({ ...toBeMade, startCount: 1n });
    refusal = undefined;
    expect(await manager.start(start(id, 3))).toMatchObject({ state: SandboxState.RUNNING, startCount: 2n });
  });

  test('L-19: a start that was carried out is not carried out again when its run is over', async () => {
    let runs = 0;
    const manager = await open({
      behave: (_, finish) => {
        runs++;
        setImmediate(() => finish({ exitCode: 7 }));
      },
    });
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    await stateOf(manager, id, SandboxState.STOPPED);
    await manager.start(start(id, 2));
    await stateOf(manager, id, SandboxState.STOPPED);
    expect(await manager.start(start(id, 2))).toMatchObject({ state: SandboxState.STOPPED, exitCode: 7, startCount: 2n });
    expect(runs).toBe(2);
  });

  test('a runtime that fails late leaves nothing either', async () => {
    const manager = await open({ fail: (operation) => (operation === 'create' ? new DroverError('disk-full', 'no space') : undefined) });
    const id = newSandboxId();
    await expect(manager.create(createCommand(id), quiet)).rejects.toMatchObject({ code: 'disk-full' });
    await expectNoTrace(id);
  });

  test('destroy does not wait for a pull under way: the create is cancelled', async () => {
    const manager = await open();
    const id = newSandboxId();
    const pulling = Promise.withResolvers<void>();
    pull = async (_, signal) => {
      pulling.resolve();
      await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true }));
    };
    const creating = manager.create(createCommand(id), quiet);
    const refused = expect(creating).rejects.toMatchObject({ code: 'cancelled' });
    await pulling.promise;
    await manager.destroy(id);
    await refused;
    await expectNoTrace(id);
    expect(manager.list()).toEqual([]);
  });

  test('R-18: only directories that the host allows are mounted', async () => {
    const manager = await open();
    expect(() => specOf({ mounts: [{ source: '/srv/shared/../../etc', target: '/mnt' }] })).toThrow('cannot be the source of a mount');
    for (const source of ['/etc', '/srv/shared-not']) {
      const id = newSandboxId();
      const spec = specOf({ mounts: [{ source, target: '/mnt', readOnly: true }] });
      await expect(manager.create(createCommand(id, spec), quiet)).rejects.toMatchObject({ code: 'permission-denied' });
    }
    const spec = specOf({ mounts: [{ source: '/srv/shared/data', target: '/mnt', readOnly: true }] });
    expect(await manager.create(createCommand(newSandboxId(), spec), quiet)).toMatchObject({ state: SandboxState.RUNNING });
  });
});

describe('the end of a sandbox', () => {
  test('its exit code is reported, and its address is free again', async () => {
    const manager = await open({ behave: (_, finish) => setImmediate(() => finish({ exitCode: 7 })) });
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    expect(await stateOf(manager, id, SandboxState.STOPPED)).toMatchObject({
      exitCode: 7,
      reason: 'exited',
      outOfMemory: false,
      address: '',
    });
    expect(state.networks.has(id)).toBe(false);
    expect(state.images.has(id)).toBe(true);
  });

  test('R-10: a limit that is reached is reported though a check before could not be made', async () => {
    let checks = 0;
    class FullDisk extends FakeBackend {
      override async exhausted(): Promise<readonly Exhausted[]> {
        if (++checks === 1) throw new Error('statfs failed');
        return await Promise.resolve([{ resource: 'disk', limit: 50_000_000 }]);
      }
    }
    const clock = new FakeClock();
    const reported: unknown[] = [];
    const manager = await open({}, FullDisk, { clock, report: ({ event }) => void reported.push(event) });
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    await vi.waitFor(async () => {
      await clock.advance(resourceCheckMs);
      expect(reported).toMatchObject([{ case: 'limitReached', value: { resource: 'disk' } }]);
    });
    expect(checks).toBeGreaterThan(1);
  });

  test('R-10: want of memory is reported as that, not as an exit', async () => {
    const manager = await open({ behave: (_, finish) => setImmediate(() => finish({ exitCode: 137, outOfMemory: true })) });
    const id = newSandboxId();
    await manager.create(createCommand(id, specOf({ resources: { memoryBytes: 64n * 1024n * 1024n } })), quiet);
    const seen = await stateOf(manager, id, SandboxState.FAILED);
    expect(seen).toMatchObject({ reason: 'out-of-memory', outOfMemory: true, exitCode: 137 });
    expect(seen.message).toMatch(/--memory/);
  });

  test('a command that could not be started is a failure with its reason', async () => {
    const manager = await open({
      behave: (_, finish) => setImmediate(() => finish({ exitCode: 127, startFailure: 'no such program: nonsense' })),
    });
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    expect(await stateOf(manager, id, SandboxState.FAILED)).toMatchObject({
      reason: 'start-failed',
      message: 'no such program: nonsense',
      exitCode: 127,
    });
  });

  test('stop ends it, and start begins another run of the same sandbox', async () => {
    const manager = await open();
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    expect(await manager.stop(stop(id, 2))).toMatchObject({ state: SandboxState.STOPPED, generation: 2n, exitCode: 143 });
    expect(await manager.stop(stop(id, 3))).toMatchObject({ state: SandboxState.STOPPED, generation: 3n });
    expect(await manager.start(start(id, 4))).toMatchObject({ state: SandboxState.RUNNING, startCount: 2n, generation: 4n });
  });

  test('L-19: stop and destroy of one that is gone succeed; start of one that is gone is not found', async () => {
    const manager = await open();
    const id = newSandboxId();
    expect(await manager.stop(stop(id, 1))).toBeUndefined();
    await manager.destroy(id);
    await expect(manager.start(start(id, 1))).rejects.toMatchObject({ code: 'sandbox-not-found' });
  });

  test('destroy removes every trace', async () => {
    const manager = await open();
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    await manager.destroy(id);
    await expectNoTrace(id);
    expect(await readdir(join(directory, 'records'))).toEqual([]);
  });

  test('pause and resume; a paused one can be stopped', async () => {
    const manager = await open();
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    expect(await manager.pause(ref(id, 2))).toMatchObject({ state: SandboxState.PAUSED });
    expect(await manager.resume(ref(id, 3))).toMatchObject({ state: SandboxState.RUNNING });
    await manager.pause(ref(id, 4));
    expect(await manager.stop(stop(id, 5))).toMatchObject({ state: SandboxState.STOPPED });
    await expect(manager.pause(ref(id, 6))).rejects.toMatchObject({
      code: 'sandbox-not-running',
    });
  });
});

describe('I-4: containment', () => {
  const cut = (id: SandboxId, generation: number, networkCut = true): SandboxCommand & NetworkClosure => ({
    id,
    generation,
    networkCut,
    registrationClosed: false,
  });

  test('a network is cut and restored, each twice is once, and what is in force is reported', async () => {
    const manager = await open();
    const id = newSandboxId();
    expect(await manager.create(createCommand(id), quiet)).toMatchObject({ networkCut: false });
    for (const [generation, wanted] of [
      [2, true],
      [3, true],
      [4, false],
      [5, false],
    ] as const) {
      expect(await manager.setClosure(cut(id, generation, wanted))).toMatchObject({
        state: SandboxState.RUNNING,
        networkCut: wanted,
        generation: BigInt(generation),
      });
      expect(state.networks.get(id)?.cut).toBe(wanted);
    }
    await expect(manager.setClosure(cut(newSandboxId(), 1))).rejects.toMatchObject({ code: 'sandbox-not-found' });
  });

  test('the registration port is closed and opened beside a cut, at a start too', async () => {
    const manager = await open();
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    const say = (generation: number, registrationClosed: boolean): SandboxCommand & NetworkClosure => ({
      id,
      generation,
      networkCut: true,
      registrationClosed,
    });
    expect(await manager.setClosure(say(2, true))).toMatchObject({ networkCut: true, registrationClosed: true });
    expect([state.networks.get(id)?.cut, state.networks.get(id)?.registrationClosed]).toEqual([true, true]);
    expect(await manager.setClosure(say(3, false))).toMatchObject({ networkCut: true, registrationClosed: false });
    expect([state.networks.get(id)?.cut, state.networks.get(id)?.registrationClosed]).toEqual([true, false]);
    await manager.stop(stop(id, 4));
    await manager.start(start(id, 5, { registrationClosed: true }));
    expect([state.networks.get(id)?.cut, state.networks.get(id)?.registrationClosed]).toEqual([false, true]);
  });

  test('what could not be cut is not reported as cut', async () => {
    const manager = await open();
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    state.networks.delete(id);
    await expect(manager.setClosure(cut(id, 2))).rejects.toMatchObject({ code: 'sandbox-not-found' });
    expect(manager.inspect(id)).toMatchObject({ networkCut: false, generation: 1n });
  });

  test('a create and a start that ask for it are cut before anything runs', async () => {
    const atStart: boolean[] = [];
    const manager = await open({ behave: ({ id }) => void atStart.push(state.networks.get(id)?.cut === true) });
    const id = newSandboxId();
    const command = createCommand(id, specOf(), { networkCut: true });
    expect(await manager.create(command, quiet)).toMatchObject({ networkCut: true });
    await manager.stop(stop(id, 2));
    await manager.start(start(id, 3, { networkCut: true }));
    await manager.stop(stop(id, 4));
    expect(await manager.start(start(id, 5))).toMatchObject({ networkCut: false });
    expect(atStart).toEqual([true, true, false]);
  });

  test('one that does not run is cut at its next start; in between it is reported as wanted', async () => {
    const manager = await open();
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    await manager.stop(stop(id, 2));
    expect(await manager.setClosure(cut(id, 3))).toMatchObject({ state: SandboxState.STOPPED, networkCut: true });
    expect(state.networks.has(id)).toBe(false);
  });

  test('R-9: the next agent keeps it, and what an earlier one wrote down without it counts as not cut', async () => {
    const first = await open();
    const [contained, other] = [newSandboxId(), newSandboxId()];
    for (const id of [contained, other]) await first.create(createCommand(id), quiet);
    await first.setClosure(cut(contained, 2));
    await first.close();
    for (const each of state.networks.values()) each.cut = false;
    const path = join(directory, 'records', `${other}.json`);
    const { networkCut: _, ...old } = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;
    await writeFile(path, JSON.stringify(old));
    const second = await open();
    expect(second.inspect(contained)).toMatchObject({ state: SandboxState.RUNNING, networkCut: true });
    expect(second.inspect(other)).toMatchObject({ state: SandboxState.RUNNING, networkCut: false });
    expect([...state.networks].filter(([, { cut: isCut }]) => isCut).map(([id]) => id)).toEqual([contained]);
  });

  /** A workload that takes no notice of SIGTERM. */
  class Stubborn extends FakeBackend {
    override async kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
      if (signal === 'SIGKILL') await super.kill(id, signal);
    }
    override async resume(id: SandboxId): Promise<void> {
      resumed.push(id);
      await super.resume(id);
    }
  }
  const resumed: SandboxId[] = [];

  test('a cut does not wait for a stop that takes its time, and a kill ends it', async () => {
    const manager = await open({}, Stubborn);
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    const stopped = manager.stop(stop(id, 2, 600_000));
    await stateOf(manager, id, SandboxState.STOPPING);
    const contained = manager.setClosure(cut(id, 3));
    await vi.waitFor(() => expect(state.networks.get(id)?.cut).toBe(true));
    expect(manager.inspect(id)).toMatchObject({ state: SandboxState.STOPPING });
    const killed = manager.stop(stop(id, 4, 1));
    expect(await stopped).toMatchObject({ state: SandboxState.STOPPED, exitCode: 137 });
    expect(await contained).toMatchObject({ networkCut: true });
    expect(await killed).toMatchObject({ state: SandboxState.STOPPED, generation: 4n });
  });

  test('one that is cut while its image is prepared is cut before anything runs in it; the newest word counts', async () => {
    const atStart: boolean[] = [];
    const manager = await open({ behave: ({ id }) => void atStart.push(state.networks.get(id)?.cut === true) });
    for (const [last, generation] of [
      [true, 3],
      [false, 4],
    ] as const) {
      const pulled = Promise.withResolvers<void>();
      pull = async () => await pulled.promise;
      const id = newSandboxId();
      const made = manager.create(createCommand(id), quiet);
      await stateOf(manager, id, SandboxState.PREPARING);
      const words = [manager.setClosure(cut(id, generation, last)), manager.setClosure(cut(id, 2, !last))];
      pulled.resolve();
      expect(await made).toMatchObject({ state: SandboxState.RUNNING, networkCut: last });
      expect(await Promise.all(words)).toMatchObject([{ networkCut: last }, { networkCut: last }]);
      expect(state.networks.get(id)?.cut).toBe(last);
    }
    expect(atStart).toEqual([true, false]);
  });

  test('one that cannot be cut is not started', async () => {
    const manager = await open();
    const pulled = Promise.withResolvers<void>();
    pull = async () => await pulled.promise;
    const id = newSandboxId();
    const made = manager.create(createCommand(id), quiet);
    await stateOf(manager, id, SandboxState.PREPARING);
    isCutFailing = true;
    const contained = manager.setClosure(cut(id, 2));
    pulled.resolve();
    await expect(made).rejects.toMatchObject({ code: 'runtime-failed' });
    expect(await contained).toMatchObject({ state: SandboxState.FAILED, networkCut: true });
    expect(state.sandboxes.has(id)).toBe(false);
  });

  test('a removal does not wait for the grace of a stop under way', async () => {
    const manager = await open({}, Stubborn);
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    const stopped = manager.stop(stop(id, 2, 600_000));
    await stateOf(manager, id, SandboxState.STOPPING);
    await manager.destroy(id);
    expect(await stopped).toMatchObject({ exitCode: 137 });
    await expectNoTrace(id);
  });

  test('a longer grace does not lengthen a stop under way', async () => {
    const manager = await open({}, Stubborn);
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    const stopped = manager.stop(stop(id, 2, 300));
    await stateOf(manager, id, SandboxState.STOPPING);
    const later = manager.stop(stop(id, 3, 600_000));
    expect(await stopped).toMatchObject({ exitCode: 137 });
    expect(await later).toMatchObject({ state: SandboxState.STOPPED });
  });

  test('one that is paused and cut can be killed without running again, and destroyed', async () => {
    const manager = await open({}, Stubborn);
    const [killed, destroyed] = [newSandboxId(), newSandboxId()];
    for (const id of [killed, destroyed]) {
      await manager.create(createCommand(id), quiet);
      await manager.setClosure(cut(id, 2));
      await manager.pause(ref(id, 3));
    }
    expect(await manager.stop(stop(killed, 4, 1))).toMatchObject({ state: SandboxState.STOPPED, exitCode: 137, networkCut: true });
    expect(resumed).toEqual([]);
    await manager.destroy(destroyed);
    await expectNoTrace(destroyed);
  });
});

describe('I-6: the certificate is signed while the sandbox is being started', () => {
  test('nothing runs in it before, and it is on record as being prepared', async () => {
    const ran: string[] = [];
    const manager = await open({ behave: ({ id }) => void ran.push(id) });
    const signing = Promise.withResolvers<void>();
    beforeSigning = async () => await signing.promise;
    const id = newSandboxId();
    const made = manager.create(createCommand(id), quiet);
    await vi.waitFor(() => expect(state.networks.has(id)).toBe(true));
    expect(manager.inspect(id)).toMatchObject({ state: SandboxState.PREPARING, address: '' });
    expect(ran).toEqual([]);
    signing.resolve();
    expect(await made).toMatchObject({ state: SandboxState.RUNNING });
    expect(ran).toEqual([id]);
  });

  test('one that is refused leaves nothing', async () => {
    const manager = await open();
    beforeSigning = async () => await Promise.reject(new DroverError('permission-denied', 'not placed on this host'));
    const id = newSandboxId();
    await expect(manager.create(createCommand(id), quiet)).rejects.toMatchObject({ code: 'permission-denied' });
    expect(manager.inspect(id)).toMatchObject({ state: SandboxState.FAILED });
    await manager.destroy(id);
    await expectNoTrace(id);
  });

  test('one that is removed meanwhile does not wait for it', async () => {
    const manager = await open();
    beforeSigning = async (signal) =>
      await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true }));
    const id = newSandboxId();
    const refused = expect(manager.create(createCommand(id), quiet)).rejects.toMatchObject({ code: 'cancelled' });
    await vi.waitFor(() => expect(state.networks.has(id)).toBe(true));
    await manager.destroy(id);
    await refused;
    await expectNoTrace(id);
  });
});

describe('R-9: the next agent', () => {
  test('adopts what runs, with its start, and sees its end', async () => {
    const first = await open();
    const id = newSandboxId();
    await first.create(createCommand(id), quiet);
    const runtime = new FakeBackend({ state });
    const second = await open();
    expect(second.inspect(id)).toMatchObject({ state: SandboxState.RUNNING, startCount: 1n });
    expect(state.networks.get(id)?.allow).toEqual(['example.com']);
    runtime.finish(id, { exitCode: 3 });
    expect(await stateOf(second, id, SandboxState.STOPPED)).toMatchObject({ exitCode: 3 });
  });

  test('adopts the sandboxes though the run directory of one cannot be mounted', async () => {
    const first = await open();
    const [broken, other] = [newSandboxId(), newSandboxId()];
    for (const id of [broken, other]) await first.create(createCommand(id), quiet);
    await mkdir(join(directory, 'run-disks'));
    await writeFile(join(directory, 'run-disks', `${broken}.img`), 'no file system');
    const second = await open();
    for (const id of [broken, other]) expect(second.inspect(id)).toMatchObject({ state: SandboxState.RUNNING });
  });

  test('finds the exit code of what ended while no agent was there', async () => {
    const first = await open();
    const id = newSandboxId();
    await first.create(createCommand(id), quiet);
    await first.close();
    new FakeBackend({ state }).finish(id, { exitCode: 9 });
    expect((await open()).inspect(id)).toMatchObject({ state: SandboxState.STOPPED, exitCode: 9 });
  });

  test('takes back a create that was cut off before the sandbox came to be, so that it is made again', async () => {
    const id = newSandboxId();
    const first = await open({ latencyMs: { create: 600_000 } });
    const cut = first.create(createCommand(id), quiet).catch(() => undefined);
    await vi.waitFor(async () => expect(await readdir(join(directory, 'run', id))).toContain('config.json'));
    // The record as it is on disk at this moment is what a killed agent leaves.
    const record = await readFile(join(directory, 'records', `${id}.json`));
    await first.destroy(id);
    await cut;
    await writeFile(join(directory, 'records', `${id}.json`), record);
    const second = await open();
    expect(second.list()).toEqual([]);
    await expectNoTrace(id);
    expect(await second.create(createCommand(id), quiet)).toMatchObject({ state: SandboxState.RUNNING, startCount: 1n });
  });

  test.each([
    ['first', 0],
    ['later', 1],
  ])('takes back a %s start whose init still waited when the agent was killed, though it lives', async (_, startCount) => {
    const first = await open();
    const id = newSandboxId();
    await first.create(createCommand(id), quiet);
    const path = join(directory, 'records', `${id}.json`);
    const record = JSON.parse(await readFile(path, 'utf8')) as object;
    await writeFile(path, JSON.stringify({ ...record, phase: 'preparing', address: '', startCount }));
    const second = await open();
    expect(state.networks.has(id)).toBe(false);
    if (startCount === 0) {
      expect(second.list()).toEqual([]);
      await expectNoTrace(id);
      expect(await second.create(createCommand(id), quiet)).toMatchObject({ state: SandboxState.RUNNING, startCount: 1n });
    } else {
      expect(second.inspect(id)).toMatchObject({ state: SandboxState.PREPARING, startCount: 1n });
      expect((await new FakeBackend({ state }).inspect(id))?.phase).toBe('ended');
      expect(await second.start(start(id, 3))).toMatchObject({ state: SandboxState.RUNNING, startCount: 2n });
    }
  });

  test('L-22: an agent that stops in mid-start fails nothing: the next one is asked to start it again', async () => {
    const first = await open();
    const id = newSandboxId();
    await first.create(createCommand(id), quiet);
    await first.stop(stop(id, 2));
    const pulling = Promise.withResolvers<void>();
    pull = async (_, signal) => {
      pulling.resolve();
      await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true }));
    };
    const refused = expect(first.start(start(id, 3))).rejects.toMatchObject({ code: 'cancelled' });
    await pulling.promise;
    life.abort(new DroverError('cancelled', 'the agent is ended'));
    await refused;
    expect(first.inspect(id)).toMatchObject({ state: SandboxState.PREPARING, startCount: 1n });
    await first.close();

    life = new AbortController();
    pull = async () => await Promise.resolve();
    const second = await open();
    expect(second.inspect(id)).toMatchObject({ state: SandboxState.PREPARING, startCount: 1n });
    expect(state.networks.has(id)).toBe(false);
    expect(await second.start(start(id, 3))).toMatchObject({ state: SandboxState.RUNNING, startCount: 2n });
  });

  test('adopts what runs without the gateway too, whose table it gets later', async () => {
    const first = await open();
    const id = newSandboxId();
    await first.create(createCommand(id), quiet);
    refusal = new DroverError('unavailable', 'the gateway does not come up');
    expect((await open()).inspect(id)).toMatchObject({ state: SandboxState.RUNNING, startCount: 1n });
  });

  test('counts the start that was under way when the agent was killed just after it', async () => {
    const first = await open();
    const id = newSandboxId();
    await first.create(createCommand(id), quiet);
    const path = join(directory, 'records', `${id}.json`);
    const record = JSON.parse(await readFile(path, 'utf8')) as object;
    await writeFile(path, JSON.stringify({ ...record, phase: 'starting', startCount: 0 }));
    expect((await open()).inspect(id)).toMatchObject({ state: SandboxState.RUNNING, startCount: 1n });
  });

  test('sweeps what belongs to nobody: a record that cannot be read, run directories, addresses, image holds', async () => {
    const first = await open();
    const id = newSandboxId();
    await first.create(createCommand(id), quiet);
    await writeFile(join(directory, 'records', `${id}.json`), '{ torn');
    const second = await open();
    expect(second.list()).toEqual([]);
    await expectNoTrace(id);
  });
});

test('observations of one sandbox come in order, each with a larger sequence', async () => {
  const manager = await open({ behave: (_, finish) => setImmediate(() => finish({ exitCode: 0 })) });
  const seen: sandbox.SandboxObservation[] = [];
  manager.onObserved((observation) => seen.push(observation));
  const id = newSandboxId();
  await manager.create(createCommand(id), quiet);
  await stateOf(manager, id, SandboxState.STOPPED);
  expect(seen.map(({ state: at }) => at)).toEqual([
    SandboxState.PREPARING,
    SandboxState.STARTING,
    SandboxState.RUNNING,
    SandboxState.STOPPED,
  ]);
  expect(seen.map(({ sequence }) => sequence)).toEqual(seen.map(({ sequence }) => sequence).toSorted((a, b) => Number(a - b)));
});

describe('R-19: secrets', () => {
  const { ENVIRONMENT, FILE } = sandbox.SecretTarget;
  const canary = 'a-canary-in-the-mine';
  const spec = specOf({
    env: [{ name: 'TOKEN', value: 'not this' }],
    secrets: [
      { name: 'TOKEN', target: ENVIRONMENT },
      { name: 'KEY', target: FILE },
    ],
  });
  const secrets = [
    create(sandbox.SecretValueSchema, { name: 'KEY', value: new TextEncoder().encode(`file ${canary}`) }),
    create(sandbox.SecretValueSchema, { name: 'TOKEN', value: new TextEncoder().encode(canary) }),
  ];
  const configOf = async (id: SandboxId): Promise<{ main: { env: string[] }; secrets: unknown }> =>
    JSON.parse(await readFile(join(directory, 'run', id, 'config.json'), 'utf8')) as { main: { env: string[] }; secrets: unknown };

  test('are for init alone, who removes them: a start gets them with its command, and nothing else on the host has them', async () => {
    const requests: (number | undefined)[] = [];
    const manager = await open({ behave: (request) => void requests.push(request.secretsBytes) });
    const id = newSandboxId();
    await manager.create(createCommand(id, spec, { secrets }), quiet);
    const config = await configOf(id);
    expect(config.main.env.filter((entry) => entry.startsWith('TOKEN='))).toEqual([`TOKEN=${canary}`]);
    expect(config.secrets).toEqual([{ name: 'KEY', value: Buffer.from(`file ${canary}`).toString('base64') }]);
    expect(requests).toEqual([secretsTmpfsSize]);
    expect(await readFile(join(directory, 'records', `${id}.json`), 'utf8')).not.toContain(canary);

    // A sandbox that was killed before its init could read them leaves none behind.
    await manager.stop(stop(id, 2));
    expect(existsSync(join(directory, 'run', id, 'config.json'))).toBe(false);
    await expect(manager.start(start(id, 3))).rejects.toMatchObject({ code: 'failed-precondition' });
    await manager.start(start(id, 4, { secrets }));
    expect((await configOf(id)).main.env).toContain(`TOKEN=${canary}`);
  });

  test('one that did not come with the start keeps the sandbox from starting', async () => {
    const manager = await open();
    const id = newSandboxId();
    await expect(manager.create(createCommand(id, spec), quiet)).rejects.toMatchObject({ code: 'failed-precondition' });
    await expectNoTrace(id);
  });
});

describe('R-20: an idle sandbox', () => {
  test('that init stopped is stopped, and says why', async () => {
    let finish: ((outcome: { exitCode: number; idle: boolean }) => void) | undefined;
    const manager = await open({ behave: (_, end) => (finish = end) });
    const id = newSandboxId();
    await manager.create(createCommand(id, specOf({ idleStopSeconds: 90n })), quiet);
    expect(JSON.parse(await readFile(join(directory, 'run', id, 'config.json'), 'utf8'))).toMatchObject({ idleStopMs: 90_000 });
    finish?.({ exitCode: 143, idle: true });
    expect(await stateOf(manager, id, SandboxState.STOPPED)).toMatchObject({ reason: 'idle', exitCode: 143 });
  });

  test('is known as such by the next agent, when this one was gone by then (R-9)', async () => {
    let finish: ((outcome: { exitCode: number; idle: boolean }) => void) | undefined;
    const manager = await open({ behave: (_, end) => (finish = end) });
    const id = newSandboxId();
    await manager.create(createCommand(id), quiet);
    await manager.close();
    finish?.({ exitCode: 143, idle: true });
    expect(await stateOf(await open(), id, SandboxState.STOPPED)).toMatchObject({ reason: 'idle' });
  });
});

describe('stats', () => {
  test('are of those that run, all or the ones that are named', async () => {
    const manager = await open({ usage: () => ({ cpuUsec: 5, memoryBytes: 6, pids: 7 }) });
    const [one, two] = [newSandboxId(), newSandboxId()];
    for (const id of [one, two]) await manager.create(createCommand(id), quiet);
    await manager.stop(stop(two, 2));
    expect(await manager.stats()).toMatchObject([{ id: one, cpuUsec: 5, memoryBytes: 6, pids: 7 }]);
    expect(await manager.stats([two, newSandboxId()])).toEqual([]);
  });
});
