import { spawn, type ChildProcess } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { initPort } from '@drover/init';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, TestDrover, tracesOf } from '../harness/index.ts';

/** The port of the hostile init in the sandbox's network namespace. */
const hostilePort = 19_180;

let drover: TestDrover;
let hostile: { readonly id: string };
let peer: ChildProcess | undefined;
let attacks = '';

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.231.0.0/20']);
  [, hostile] = await Promise.all([drover.begin('good', ['sleep', '1d']), drover.begin<{ id: string }>('hostile', ['sleep', '1d'])]);
  await replaceInit();
});

afterAll(async () => {
  peer?.kill('SIGKILL');
  const left = await tracesOf(drover);
  await drover[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

/** Redirects new connections to the sandbox's address to the hostile init. The present session ends with the control plane. */
async function replaceInit(): Promise<void> {
  const pid = await readFile(join(drover.data, 'host', 'sandboxes', hostile.id, 'init.pid'), 'utf8');
  const inside = [`--net=/proc/${pid.trim()}/ns/net`, '--'];
  const [certificate, key] = ['cert.pem', 'key.pem'].map((name) => join(drover.directory, name)) as [string, string];
  const subject = ['-subj', '/CN=hostile', '-days', '2', '-nodes', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'];
  await execa('openssl', ['req', '-x509', ...subject, '-keyout', key, '-out', certificate]);
  const program = join(import.meta.dirname, '..', 'http2', 'hostile-init.ts');
  const node = [process.execPath, '--conditions=development', '--disable-warning=ExperimentalWarning'];
  peer = spawn('nsenter', [...inside, ...node, program, String(hostilePort), certificate, key], { stdio: ['ignore', 'pipe', 'inherit'] });
  peer.stdout?.setEncoding('utf8').on('data', (text: string) => (attacks += text));
  await eventually('the hostile init listens', () => attacks.startsWith('listening\n'));
  const rules = `
    table ip hostile {
      chain incoming { type nat hook prerouting priority dstnat; tcp dport ${initPort} redirect to :${hostilePort}; }
    }`;
  await execa('nsenter', [...inside, 'nft', '-f', '-'], { input: rules });
}

/** Ends the control plane as an abort does. A SIGKILL would count as external and put no sandbox on trial. */
async function killControlPlane(): Promise<void> {
  const pid = await drover.pidOf('serve');
  process.kill(pid, 'SIGABRT');
  await eventually('another control plane responds', async () => (await drover.pidOf('serve')) !== pid && (await drover.answers()));
}

async function session(name: string): Promise<{ readonly state: string; readonly lastError?: string }> {
  return (await drover.sandbox<{ session: { state: string; lastError?: string } }>(name)).session;
}

test('an init that attacks its session breaks only that session', async () => {
  await killControlPlane();
  const pid = await drover.pidOf('serve');
  await eventually('several attacks were made', () => attacks.split('\n').length > 6);
  await drover.saw(hostile.id, ['session'], (types) => types.filter((type) => type === 'SessionConnecting').length > 3);
  expect(await drover.pidOf('serve')).toBe(pid);
  expect((await drover.exec('good', ['echo', 'here'])).stdout).toBe('here\n');
  expect((await session('good')).state).toBe('connected');
});

test('the sandbox connected when the control plane ends twice in a row is dialled later, and can be contained', async () => {
  const record = join(drover.data, 'control-plane', 'crashes.json');
  // The sandbox is on trial, so this end counts as an abort by its peer.
  await killControlPlane();
  const onTrial = async (): Promise<number | false> => {
    const { trial } = JSON.parse(await readFile(record, 'utf8')) as { readonly trial: readonly string[] };
    return trial.length === 1 && trial[0] === hostile.id && (await drover.pidOf('serve'));
  };
  const pid = await eventually('the sandbox is on trial', onTrial, 90_000);
  process.kill(pid, 'SIGABRT');
  await eventually('another control plane responds', async () => (await drover.pidOf('serve')) !== pid && (await drover.answers()));
  await drover.saw(hostile.id, ['session'], (types) => types.includes('SessionDelayed'));
  expect(await session('hostile')).toMatchObject({ state: 'broken', lastError: expect.stringContaining('ended unexpectedly') });
  expect((await drover.run(['sandbox', 'get', 'hostile'])).stdout).toContain('ended unexpectedly');
  expect((await drover.run(['exec', 'hostile', '--', 'true'])).stderr).toContain('ended unexpectedly');
  // The other sandbox has its session without delay.
  expect((await drover.exec('good', ['echo', 'here'])).stdout).toBe('here\n');

  expect((await drover.run(['sandbox', 'contain', '--kill', 'hostile'])).code).toBe(0);
  await eventually('the sandbox was killed', async () =>
    /^(stopped|failed)$/.test((await drover.sandbox<{ state: string }>('hostile')).state),
  );
});
