import { connect, type Socket } from 'node:net';
import { once } from 'node:events';
import { create } from '@bufbuild/protobuf';
import { BoundedQueue, newHostId, type DroverError, type HostId, type SandboxId } from '@drover/foundation';
import { init, sandbox } from '@drover/protocol';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
// Tests look at peers from above: the real init, over real TLS.
import { createTestAuthority, startInit, type TestAuthority, type TestInit } from '@drover/init/testing';
import type { Hub, HubListener, TunnelTarget } from '../hub/hub.ts';
import type { SandboxRow, Store } from '../store/store.ts';
import { SessionManager } from './manager.ts';

/** A hub whose tunnels lead to inits on this machine. */
class LocalHub implements Pick<Hub, 'on' | 'openTunnel' | 'isConnected'> {
  readonly ports = new Map<SandboxId, number>();
  readonly tunnels: Socket[] = [];
  connected = true;
  fail: Error | undefined;
  #listener: HubListener = {};

  isConnected(): boolean {
    return this.connected;
  }

  on(listener: HubListener): () => void {
    this.#listener = listener;
    return () => {
      this.#listener = {};
    };
  }

  async openTunnel(_host: HostId, target: TunnelTarget, signal?: AbortSignal): Promise<Socket> {
    if (this.fail !== undefined) throw this.fail;
    const socket = connect({ port: this.ports.get(target.sandboxId) ?? 1, host: '127.0.0.1', noDelay: true });
    this.tunnels.push(socket);
    await once(socket, 'connect', { signal });
    return socket;
  }

  observe(id: SandboxId): void {
    this.#listener.observed?.('' as HostId, [create(sandbox.SandboxObservationSchema, { sandboxId: id })]);
  }
}

/** The columns that sessions read; the store itself has its own suite. */
class Rows {
  readonly rows = new Map<SandboxId, SandboxRow>();
  #listener: () => void = () => undefined;
  readonly store = {
    sandboxes: { get: async (id: SandboxId) => this.rows.get(id), list: async () => [...this.rows.values()] },
    events: {
      onAppend: (listener: () => void) => {
        this.#listener = listener;
        return () => undefined;
      },
    },
  } as unknown as Pick<Store, 'sandboxes' | 'events'>;

  set(id: SandboxId, change: Partial<SandboxRow>): void {
    const blank = {
      id,
      name: 'box',
      hostId: newHostId(),
      desired: 'running',
      reason: '',
      message: '',
      pendingReason: '',
      pendingMessage: '',
    };
    this.rows.set(id, {
      ...(blank as unknown as SandboxRow),
      observedGeneration: 1,
      startGeneration: 1,
      ...this.rows.get(id),
      ...change,
    });
    this.#listener();
  }
}

let test: TestAuthority;
let box: TestInit;
let id: SandboxId;
let hub: LocalHub;
let rows: Rows;
let sessions: SessionManager;
const live = new AbortController().signal;

beforeEach(async () => {
  test = await createTestAuthority();
  box = await startInit(test, { main: { argv: ['sh', '-c', 'echo started; read x; echo got $x; exit 4'], stdin: true } });
  id = box.config.sandboxId as SandboxId;
  hub = new LocalHub();
  hub.ports.set(id, box.port);
  rows = new Rows();
  sessions = manager(test);
});
afterEach(async () => {
  await sessions.closeAll();
  await box.close();
  await test.close();
});

function manager(authority: TestAuthority): SessionManager {
  const { certificatePem: certPem, keyPem } = authority.controlPlane;
  const made = new SessionManager({ store: rows.store, hub, tls: { certPem, keyPem, caPem: authority.authority.caPem }, random: () => 0 });
  made.attach();
  return made;
}

/** Attaches to the main process, sends `input`, and gives what came back. */
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

describe('a session', () => {
  it('is dialled when a sandbox is observed to run, and starts its command', async () => {
    rows.set(id, { observed: 'running' });
    hub.observe(id);
    expect(await attach(0n, 'hi\n')).toMatchObject({ output: 'started\ngot hi\n', exit: 4 });
    expect(await box.exited).toBe(4);
  });

  it('client() waits for a sandbox that is still being made', async () => {
    rows.set(id, { observed: 'preparing' });
    const waiting = sessions.client(id, live);
    rows.set(id, { observed: 'running' });
    hub.observe(id);
    await waiting;
    expect(sessions.status(id).state).toBe('connected');
  });

  it('client() fails at once with the words of a sandbox that failed meanwhile', async () => {
    rows.set(id, { observed: 'preparing' });
    const waiting = sessions.client(id, live).catch((error: DroverError) => error);
    rows.set(id, { observed: 'failed', message: 'the image has no such command' });
    expect(await waiting).toMatchObject({ code: 'sandbox-not-running', message: expect.stringContaining('the image has no such command') });
  });

  it('client() ends with its caller', async () => {
    rows.set(id, { observed: 'preparing' });
    const caller = new AbortController();
    const waiting = sessions.client(id, caller.signal);
    caller.abort(new Error('gone'));
    await expect(waiting).rejects.toThrow('gone');
  });

  it('I-22: however often it is dialled, there is one', async () => {
    rows.set(id, { observed: 'running' });
    for (let i = 0; i < 10; i++) sessions.dial(id);
    await Promise.all(Array.from({ length: 10 }, async () => await sessions.client(id, live)));
    hub.observe(id);
    sessions.dial(id);
    expect(hub.tunnels).toHaveLength(1);
  });

  it('I-24: a session that breaks is dialled again, and the command has not been started again', async () => {
    rows.set(id, { observed: 'running' });
    const first = await attach(0n, undefined, 'started\n');
    hub.tunnels[0]?.destroy();
    await expect.poll(() => hub.tunnels.length).toBe(2);
    expect(await attach(first.offset, 'again\n')).toMatchObject({ output: 'got again\n', exit: 4 });
  });

  it('I-24: an intended end is not dialled again', async () => {
    rows.set(id, { observed: 'running' });
    await sessions.client(id, live);
    sessions.close(id);
    expect(sessions.status(id).state).toBe('none');
    await expect.poll(() => hub.tunnels[0]?.destroyed).toBe(true);
    expect(hub.tunnels).toHaveLength(1);
  });

  it('I-23: an attempt that fails is repeated', async () => {
    hub.fail = new Error('no tunnel yet');
    rows.set(id, { observed: 'running' });
    const waiting = sessions.client(id, live);
    await expect.poll(() => sessions.status(id).attempts).toBeGreaterThan(2);
    expect(sessions.status(id)).toMatchObject({ state: 'connecting', lastError: 'no tunnel yet' });
    hub.fail = undefined;
    await waiting;
  });

  it('I-23: a sandbox that stops while it is dialled ends the dial', async () => {
    hub.fail = new Error('no tunnel yet');
    rows.set(id, { observed: 'running' });
    sessions.dial(id);
    await expect.poll(() => sessions.status(id).attempts).toBeGreaterThan(0);
    rows.set(id, { observed: 'stopped' });
    await expect.poll(() => sessions.status(id).state).toBe('none');
  });

  it('a host that is not connected is said at once', async () => {
    hub.connected = false;
    rows.set(id, { observed: 'running' });
    await expect(sessions.client(id, live)).rejects.toMatchObject({ code: 'session-unavailable' });
  });

  it('I-1: a certificate that does not verify is talked to all the same', async () => {
    // The dialer trusts another CA than the one that signed the sandbox; its own certificate is the right one.
    await sessions.closeAll();
    const foreign = await createTestAuthority();
    sessions = manager({ ...test, authority: { ...test.authority, caPem: foreign.authority.caPem } });
    rows.set(id, { observed: 'running' });
    await sessions.client(id, live);
    await foreign.close();
  });

  it('I-28: missing credentials fail the start', () => {
    expect(() => new SessionManager({ store: rows.store, hub, tls: { certPem: '', keyPem: '', caPem: '' } })).toThrow(
      expect.objectContaining({ code: 'invalid-config' }),
    );
  });
});
