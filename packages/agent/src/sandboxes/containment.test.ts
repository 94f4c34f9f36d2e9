import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { create } from '@bufbuild/protobuf';
import { newSandboxId, type SandboxId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { initPort } from '@drover/init';
import { namesOf, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { sandbox } from '@drover/protocol';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { noImages } from '../link/testing/index.ts';
import { SandboxNetwork } from '../network/index.ts';
import { prepareInitDirectory } from '../backends/oci/init-directory.ts';
import type { OciBackend } from '../backends/oci/oci-backend.ts';
import { openOciHarness, type OciHarness } from '../backends/testing/oci-harness.ts';
import { receiveSpec, SandboxManager, type CreateCommand, type StopCommand } from './index.ts';
import { VolumeStore } from '../volumes/index.ts';

/** Containment on a real host: runc, cgroups, nftables; only the image store is not there. */
let harness: OciHarness;
let initDirectory: string;
let directory: string;
let ca: CertificateAuthority;
let life: AbortController;
let manager: SandboxManager;
const { SandboxState } = sandbox;
const ids: SandboxId[] = [];

beforeAll(async () => {
  harness = await openOciHarness('runc');
  const bundlePath = fileURLToPath(new URL('../backends/testing/init.cjs', import.meta.url));
  initDirectory = await prepareInitDirectory(harness.directory, { nodePath: process.execPath, bundlePath });
});
afterAll(async () => await harness.close());

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-containment-'));
  ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover.test' });
  life = new AbortController();
  manager = await open();
});
afterEach(async () => {
  for (const id of ids.splice(0)) await manager.destroy(id);
  life.abort();
  await manager.close();
  await rm(directory, { recursive: true, force: true });
});

function makeBackend(): OciBackend {
  const config = { entrypoint: [], command: [], env: [], workdir: '/', user: '', stopSignal: '' };
  const network = new SandboxNetwork({
    stateDirectory: directory,
    instance: `c${process.pid.toString(36)}`.slice(0, 8),
    pool: '10.252.68.0/24',
    proxyPort: 31_283,
    controlPort: 31_284,
    logger: silentLogger,
    warm: 0,
    applyGateway: () => Promise.resolve(),
  });
  const images = { ...noImages, ensure: () => Promise.resolve({ digest: 'sha256:00', layers: [harness.busybox], submounts: [], config }) };
  return harness.make({ runsIn: directory, network, images, prepareInit: () => Promise.resolve(initDirectory) });
}

async function open(): Promise<SandboxManager> {
  const opened = new SandboxManager({
    report: () => undefined,
    stateDirectory: directory,
    volumes: new VolumeStore(join(directory, 'volumes')),
    backends: [makeBackend()],
    names: namesOf('drover.test'),
    sign: async (id, csrDer) => ({ ...(await ca.signSandbox(id, 'web', csrDer)), caPem: ca.caPem, bootstrapToken: 'token' }),
    bootId: 'boot',
    allowedMounts: [],
    logger: silentLogger,
    signal: life.signal,
  });
  await opened.open();
  return opened;
}

const stop = (id: SandboxId, generation: number, graceMs: number): StopCommand => ({ id, generation, graceMs });
const createCommand = (id: SandboxId, spec: sandbox.SandboxSpec, networkCut = false): CreateCommand => ({
  id,
  generation: 1,
  project: '',
  name: 'web',
  spec: receiveSpec(spec),
  secrets: [],
  networkCut,
  registrationClosed: false,
});

/** A sandbox whose command counts in its own log of /count, cut from the first packet on and paused. */
async function contained(): Promise<SandboxId> {
  const id = newSandboxId();
  ids.push(id);
  const spec = create(sandbox.SandboxSpecSchema, { image: 'busybox', command: ['/bin/sh', '-c', 'while :; do echo >> /count; done'] });
  const seen = await manager.create(createCommand(id, spec, true), () => undefined);
  expect(seen).toMatchObject({ state: SandboxState.RUNNING, networkCut: true });
  await vi.waitFor(async () => expect((await counted(id)).length).toBeGreaterThan(10), 10_000);
  expect(await manager.pause({ id, generation: 2 })).toMatchObject({ state: SandboxState.PAUSED });
  return id;
}

const counted = async (id: SandboxId): Promise<string> =>
  await readFile(join(harness.stateDirectory, 'sandboxes', id, 'root/count'), 'utf8').catch(() => '');

test('I-4: one that is cut and paused runs nothing, and stays so for the next agent', async () => {
  const id = await contained();
  const before = await counted(id);
  life.abort();
  await manager.close();
  life = new AbortController();
  manager = await open();
  expect(manager.inspect(id)).toMatchObject({ state: SandboxState.PAUSED, networkCut: true });
  expect(await counted(id)).toBe(before);

  await manager.resume({ id, generation: 3 });
  await vi.waitFor(async () => expect((await counted(id)).length).toBeGreaterThan(before.length), 10_000);
  const stream = await manager.dial(id, 'init', life.signal);
  stream.write('x');
  expect(String((await once(stream, 'data'))[0])).toBe('x');
  stream.destroy();
});

test('I-4: the session’s port answers while it is cut, another does when it is restored', async () => {
  const id = newSandboxId();
  ids.push(id);
  const spec = create(sandbox.SandboxSpecSchema, { image: 'busybox', command: ['/bin/httpd', '-f', '-p', '7007'] });
  const seen = await manager.create(createCommand(id, spec), () => undefined);
  const answers = async (port: number): Promise<boolean> => {
    const socket = connect(port, seen.address);
    const { promise, resolve } = Promise.withResolvers<boolean>();
    socket.on('error', () => resolve(false)).once('data', () => resolve(true));
    const timer = setTimeout(() => resolve(false), 1_000);
    socket.write('GET / HTTP/1.0\r\n\r\n');
    return await promise.finally(() => {
      clearTimeout(timer);
      socket.destroy();
    });
  };
  const bothAnswer = async (): Promise<void> => expect([await answers(initPort), await answers(7007)]).toEqual([true, true]);
  await vi.waitFor(bothAnswer);
  await manager.setClosure({ id, generation: 2, networkCut: true, registrationClosed: false });
  await vi.waitFor(async () => expect(await answers(initPort)).toBe(true));
  expect(await answers(7007)).toBe(false);
  await manager.setClosure({ id, generation: 3, networkCut: false, registrationClosed: false });
  await vi.waitFor(bothAnswer);
});

test.each([
  ['the least grace, by which it does not run again', 1, 137],
  ['a grace, in which it may end by itself', 5000, 143],
])('I-4: one that is cut and paused is stopped with %s', async (_, graceMs, exitCode) => {
  const id = await contained();
  expect(await manager.stop(stop(id, 3, graceMs))).toMatchObject({ state: SandboxState.STOPPED, exitCode, networkCut: true });
  expect(await harness.backend.inspect(id)).toMatchObject({ phase: 'ended' });
});

test('I-4: one that is cut and paused is destroyed without a trace', async () => {
  const id = await contained();
  await manager.destroy(id);
  expect(await harness.leftovers(id)).toEqual([]);
  expect(manager.list()).toEqual([]);
});
