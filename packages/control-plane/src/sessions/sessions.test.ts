import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { readFile, writeFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { BoundedQueue, DroverError, systemClock, type Clock, type SandboxId } from '@drover/foundation';
import { thumbprintOf } from '@drover/pki';
import { init } from '@drover/protocol';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
// These tests use the real init, over real TLS.
import { startInit, type TestAuthority, type TestInit } from '@drover/init/testing';
import { lostRedialMs } from '../limits.ts';
import type { SessionManager } from './manager.ts';
import { eventually, World } from './testing/world.ts';

let world: World;
let box: TestInit;
let id: SandboxId;
let sessions: SessionManager;
let scratch: string;
const live = new AbortController().signal;

beforeEach(async () => {
  world = await World.open();
  scratch = await mkdtemp(join(tmpdir(), 'drover-sessions-'));
  const { ca, caKeyPem, identity } = world;
  const authority: TestAuthority = { authority: ca, controlPlane: identity, caKeyPem, close: () => Promise.resolve() };
  box = await startInit(authority, { main: { argv: ['sh', '-c', 'echo started; read x; echo got $x; exit 4'], stdin: true } });
  id = box.config.sandboxId as SandboxId;
  sessions = world.sessions();
});
afterEach(async () => {
  await world[Symbol.asyncDispose]();
  await box.close();
  await rm(scratch, { recursive: true });
});

/** The sandbox of that init. It is registered, so its session begins with the plan. */
async function made(options: Omit<Parameters<World['sandbox']>[0], 'id' | 'name'> = {}): Promise<void> {
  const row = await world.sandbox({ ...options, id, name: 'box' });
  await world.admit(row, thumbprintOf(await readFile(join(box.runDirectory, 'cert.pem'), 'utf8')));
  world.hub.ports.set(id, box.port);
}

/** Creates the sandbox; its host reports that it runs. */
async function runs(options: Parameters<typeof made>[0] = {}): Promise<void> {
  await made(options);
  world.hub.observe(id);
}

/** Attaches to the main process, sends `input`, and returns the output. */
async function attach(
  offset: bigint,
  input?: string,
  until?: string,
): Promise<{ output: string; exit: number | undefined; offset: bigint }> {
  const client = await sessions.client(id, live);
  const requests = new BoundedQueue<init.ExecRequest>({ name: 'requests', capacity: 10 });
  requests.push(create(init.ExecRequestSchema, { payload: { case: 'attach', value: { execId: 'main', afterOffset: offset } } }));
  if (input !== undefined) requests.push(create(init.ExecRequestSchema, { payload: { case: 'stdin', value: Buffer.from(input) } }));
  let output = '';
  for await (const { payload } of client.exec(requests)) {
    if (payload.case === 'output') output += Buffer.from(payload.value.data).toString();
    if (payload.case === 'exit') {
      requests.end();
      return { output, exit: payload.value.code, offset };
    }
    if (until !== undefined && output.includes(until)) break;
  }
  requests.end();
  return { output, exit: undefined, offset: offset + BigInt(output.length) };
}

const accepted: Socket[] = [];

/** A port that accepts connections. */
async function listening(onSocket: (socket: Socket) => void): Promise<number> {
  const server = createServer((socket) => {
    accepted.push(socket);
    socket.on('error', () => undefined);
    onSocket(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  server.unref();
  return (server.address() as AddressInfo).port;
}

describe('a session', () => {
  it('is dialled when a sandbox is observed to run, and starts its command', async () => {
    await runs();
    expect(await attach(0n, 'hi\n')).toMatchObject({ output: 'started\ngot hi\n', exit: 4 });
    expect(await box.exited).toBe(4);
    // The end of the sandbox is no break (I-24).
    await eventually(() => sessions.status(id).state).toBe('none');
    expect(await world.eventTypes(id)).not.toContain('SessionBroken');
  });

  it('I-21: is dialled at the start for sandboxes that run already', async () => {
    await made();
    const again = world.sessions();
    await eventually(() => again.status(id).state).toBe('connected');
  });

  it('that is lost is redialled without a call', async () => {
    await made();
    const jitter = 0.25;
    const redialMs = lostRedialMs * (0.5 + jitter);
    const clock: Clock = {
      now: () => systemClock.now(),
      sleep: async (ms, signal) => await systemClock.sleep(ms === redialMs ? 100 : ms, signal),
    };
    // A dial to a disconnected host fails immediately.
    world.hub.connected = false;
    const again = world.sessions({ clock, random: () => jitter });
    again.dial(id);
    await eventually(() => again.status(id).state).toBe('broken');
    world.hub.connected = true;
    await eventually(() => again.status(id).state).toBe('connected');
    await eventually(() => world.eventTypes(id)).toEqual(expect.arrayContaining(['SessionFailed', 'SessionConnected', 'InitCompleted']));
  });

  it('client() waits for a sandbox that is being created', async () => {
    await made({ state: 'PREPARING' });
    const waiting = sessions.client(id, live);
    await world.observe(id, 'RUNNING');
    await waiting;
    expect(sessions.status(id).state).toBe('connected');
  });

  it('client() fails immediately with the error of a failed sandbox', async () => {
    await made({ state: 'PREPARING' });
    const waiting = sessions.client(id, live).catch((error: DroverError) => error);
    await world.observe(id, 'FAILED', { message: 'the image has no such command' });
    expect(await waiting).toMatchObject({ code: 'sandbox-not-running', message: expect.stringContaining('the image has no such command') });
  });

  it('client() ends when its caller cancels', async () => {
    await made({ state: 'PREPARING' });
    const caller = new AbortController();
    const waiting = sessions.client(id, caller.signal);
    caller.abort(new Error('gone'));
    await expect(waiting).rejects.toThrow('gone');
  });

  it('I-22: is the only one after repeated dials', async () => {
    await runs();
    for (let i = 0; i < 10; i++) sessions.dial(id);
    await Promise.all(Array.from({ length: 10 }, async () => await sessions.client(id, live)));
    world.hub.observe(id);
    sessions.dial(id);
    await eventually(async () => await world.eventTypes(id)).toContain('InitCompleted');
    expect(world.hub.tunnels).toHaveLength(1);
  });

  it('I-24: a break is published and redialled, and the command is not started again', async () => {
    await runs();
    const first = await attach(0n, undefined, 'started\n');
    world.hub.tunnels[0]?.destroy();
    await eventually(() => world.hub.tunnels.length).toBe(2);
    expect(await attach(first.offset, 'again\n')).toMatchObject({ output: 'got again\n', exit: 4 });
    const types = await world.eventTypes(id);
    expect(types.filter((type) => type.startsWith('Session'))).toEqual([
      'SessionConnecting',
      'SessionConnected',
      'SessionBroken',
      'SessionConnecting',
      'SessionConnected',
    ]);
  });

  it('I-24: an intended end publishes nothing and is not redialled', async () => {
    await runs();
    await sessions.client(id, live);
    await eventually(async () => await world.eventTypes(id)).toContain('InitCompleted');
    sessions.close(id);
    expect(sessions.status(id).state).toBe('none');
    await eventually(() => world.hub.tunnels[0]?.destroyed).toBe(true);
    expect(world.hub.tunnels).toHaveLength(1);
    expect((await world.eventTypes(id)).at(-1)).toBe('InitCompleted');
  });

  it('I-24: does not count as broken when a stop ends it', async () => {
    await runs();
    await eventually(async () => await world.eventTypes(id)).toContain('InitCompleted');
    await world.store.sandboxes.setDesired(id, 'stopped');
    world.hub.tunnels[0]?.destroy();
    await eventually(() => sessions.status(id).state).toBe('none');
    expect((await world.eventTypes(id)).at(-1)).toBe('InitCompleted');
  });

  it('I-21: a sandbox that is unpaused is dialled again', async () => {
    await runs();
    await eventually(async () => await world.eventTypes(id)).toContain('InitCompleted');
    await world.store.sandboxes.setDesired(id, 'paused');
    await world.observe(id, 'PAUSED');
    world.hub.tunnels[0]?.destroy();
    await eventually(() => sessions.status(id).state).toBe('none');
    await world.store.sandboxes.setDesired(id, 'running');
    await world.observe(id, 'RUNNING');
    await eventually(() => sessions.status(id).state).toBe('connected');
  });

  it('I-23: a sandbox that stops while it is dialled ends the dial', async () => {
    world.hub.fail = new Error('no tunnel yet');
    await runs();
    await eventually(() => sessions.status(id).attempts).toBeGreaterThan(2);
    expect(sessions.status(id)).toMatchObject({ state: 'connecting', lastError: 'no tunnel yet' });
    await world.observe(id, 'STOPPED');
    await eventually(() => sessions.status(id).state).not.toBe('connecting');
    await eventually(async () => (await world.events(id)).at(-1)?.data).toMatchObject({ reason: 'not-running' });
  });

  it('I-23: a failed attempt is retried', async () => {
    world.hub.fail = new Error('no tunnel yet');
    await runs();
    const waiting = sessions.client(id, live);
    await eventually(() => sessions.status(id).attempts).toBeGreaterThan(1);
    world.hub.fail = undefined;
    await waiting;
  });

  it('a disconnected host is reported immediately', async () => {
    world.hub.connected = false;
    await made();
    await expect(sessions.client(id, live)).rejects.toMatchObject({ code: 'session-unavailable' });
  });

  it('I-26: a failed dial leaves nothing behind', async () => {
    await made();
    // One listener stays silent, the other closes the connection: TLS fails either way.
    const handles = (): number =>
      process.getActiveResourcesInfo().filter((name) => name.startsWith('TCPSocket') || name.startsWith('TLS')).length;
    const before = handles();
    world.hub.ports.set(id, await listening((socket) => socket.destroy()));
    sessions.dial(id);
    await eventually(() => sessions.status(id).attempts).toBeGreaterThan(2);
    world.hub.ports.set(id, await listening(() => undefined));
    await eventually(() => world.hub.tunnels.at(-1)?.remotePort).toBe(world.hub.ports.get(id));
    sessions.close(id);
    await eventually(() => world.hub.tunnels.every(({ closed }) => closed)).toBe(true);
    for (const socket of accepted) socket.destroy();
    await eventually(handles).toBe(before);
  });

  it('I-28: missing or unreadable credentials fail the start', () => {
    const made = (tls: { certPem: string; keyPem: string; caPem: string }) => () => world.sessions({ tls });
    const { certificatePem: certPem, keyPem } = world.identity;
    expect(made({ certPem: '', keyPem: '', caPem: '' })).toThrow(expect.objectContaining({ code: 'invalid-config' }));
    expect(made({ certPem, keyPem, caPem: 'nonsense' })).toThrow(expect.objectContaining({ code: 'invalid-config' }));
    expect(made({ certPem, keyPem: 'nonsense', caPem: world.ca.caPem })).toThrow(expect.objectContaining({ code: 'invalid-config' }));
  });
});

describe('the plan, in the real init', () => {
  it('I-29: performs the setup, then starts the command', async () => {
    const file = join(scratch, 'made', 'config');
    await runs({
      setup: { files: [{ path: file, source: { case: 'secret', value: 'TOKEN' } }], postInit: `cat ${file} > ${scratch}/seen; echo done` },
      secrets: { TOKEN: 's3cret' },
    });
    await eventually(async () => await world.eventTypes(id)).toContain('InitCompleted');
    expect(await readFile(join(scratch, 'seen'), 'utf8')).toBe('s3cret');
    expect(await attach(0n, 'hi\n')).toMatchObject({ output: 'started\ngot hi\n', exit: 4 });
  });

  it('I-30: a failed post-init fails the sandbox with the end of its stderr, and the command is not started', async () => {
    await runs({ setup: { postInit: 'echo this will not do >&2; exit 7' } });
    await eventually(async () => (await world.row(id)).message).toContain('this will not do');
    const { data } = (await world.events(id)).find(({ type }) => type === 'InitFailed') ?? {};
    expect(data).toMatchObject({ step: 'post-init', reason: 'exit-code', exitCode: 7, stderr: 'this will not do\n' });
    expect(await world.eventTypes(id)).not.toContain('InitCompleted');
    await sessions.closeAll();
    expect(box.process.exitCode).toBeNull();
  });

  it('I-32: a control plane that restarts within the plan joins the running post-init, which runs only once', async () => {
    const runsFile = join(scratch, 'runs');
    const goOn = join(scratch, 'go-on');
    await runs({ setup: { postInit: `echo run >> ${runsFile}; while [ ! -e ${goOn} ]; do sleep 0.05; done` } });
    await eventually(async () => await readFile(runsFile, 'utf8').catch(() => '')).toBe('run\n');
    await sessions.closeAll();
    const next = world.sessions();
    await eventually(async () => (await world.eventTypes(id)).filter((type) => type === 'InitStepStarted')).toHaveLength(2);
    await writeFile(goOn, '');
    await eventually(async () => await world.eventTypes(id)).toContain('InitCompleted');
    expect(await readFile(runsFile, 'utf8')).toBe('run\n');
    const types = await world.eventTypes(id);
    expect(types.filter((type) => type === 'InitFailed' || type === 'SessionBroken')).toEqual([]);
    // After the plan, a further session runs no step.
    await next.closeAll();
    const third = world.sessions();
    await eventually(() => third.status(id).state).toBe('connected');
    await third.client(id, AbortSignal.timeout(5_000));
    expect(await readFile(runsFile, 'utf8')).toBe('run\n');
    expect((await world.eventTypes(id)).filter((type) => type === 'InitCompleted')).toHaveLength(1);
  });

  it('a command that cannot be started fails the plan at agent-ready', async () => {
    const { ca, caKeyPem, identity } = world;
    await box.close();
    box = await startInit(
      { authority: ca, controlPlane: identity, caKeyPem, close: () => Promise.resolve() },
      { main: { argv: ['/no/such/command'] } },
    );
    id = box.config.sandboxId as SandboxId;
    await runs();
    await eventually(async () => (await world.events(id)).find(({ type }) => type === 'InitFailed')?.data).toMatchObject({
      step: 'agent-ready',
      reason: 'spawn-failed',
    });
    expect(await box.exited).toBe(127);
  });
});
