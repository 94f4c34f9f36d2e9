import { readFile, stat } from 'node:fs/promises';
import { connect } from 'node:http2';
import { request } from 'node:https';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { createClient, type Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { DroverError, type Logger } from '@drover/foundation';
import { api as wire, sandbox } from '@drover/protocol';
import { DroverClient, fetchCaByFingerprint, sandboxStateName } from '@drover/sdk';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { SandboxEvent } from '../events/typed.ts';
import { TestStores } from '../store/testing/stores.ts';
import { startTestApi, type TestApi } from './testing/server.ts';

const host = { image: 'host' };

async function errorOf(promise: Promise<unknown>): Promise<DroverError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof DroverError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

/** A GET over HTTP/1.1. */
async function get(api: TestApi, path: string): Promise<{ readonly status: number | undefined; readonly body: string }> {
  return await new Promise((resolve, reject) => {
    request(`${api.url}${path}`, { ca: api.ca.caPem }, (response) => {
      let body = '';
      response.on('data', (chunk: Buffer) => (body += chunk.toString()));
      response.on('end', () => resolve({ status: response.statusCode, body }));
    })
      .on('error', reject)
      .end();
  });
}

/** For calls whose idempotency keys the test chooses. */
function transportOf(api: TestApi): Transport {
  return createConnectTransport({
    baseUrl: api.url,
    httpVersion: '2',
    nodeOptions: { ca: api.ca.caPem },
    interceptors: [
      (next) => async (call) => {
        call.header.set('authorization', `Bearer ${api.token}`);
        return await next(call);
      },
    ],
  });
}

describe('who may call', () => {
  test('the first token is made at the first start, for its owner alone, and kept', async () => {
    await using api = await startTestApi();
    const path = join(api.directory, 'admin-token');
    expect((await readFile(path, 'utf8')).trim()).toBe(api.token);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect((await api.client.version()).trustDomain).toBe('test.drover');
  });

  test('a call without a known token is refused, whatever it asks for', async () => {
    await using api = await startTestApi();
    for (const token of ['drvt_wrong', `drvt_${'A'.repeat(43)}`]) {
      const client = new DroverClient({ server: api.url, token, caPem: api.ca.caPem });
      const error = await errorOf(client.version());
      expect(error.code).toBe('unauthenticated');
      expect(error.hint).toContain('admin-token');
      await expect(errorOf(client.sandboxes.exec('nothing', { argv: ['true'] }).exit)).resolves.toMatchObject({ code: 'unauthenticated' });
      client.close();
    }
  });

  test('a server of another CA is not talked to', async () => {
    await using api = await startTestApi();
    await using other = await startTestApi();
    const client = new DroverClient({ server: api.url, token: api.token, caPem: other.ca.caPem });
    expect((await errorOf(client.version())).code).toBe('ca-mismatch');
    client.close();
  });

  test('a CA is fetched by its fingerprint, and only that one', async () => {
    await using api = await startTestApi();
    const pem = await fetchCaByFingerprint(api.url, api.ca.fingerprint);
    expect(pem.trim()).toBe(api.ca.caPem.trim());
    expect((await errorOf(fetchCaByFingerprint(api.url, '0'.repeat(64)))).code).toBe('ca-mismatch');
  });

  test('the log has one line a call, without what the call held', async () => {
    const lines: string[] = [];
    const sink = new Writable({
      write: (chunk: Buffer, _encoding, done) => {
        lines.push(chunk.toString());
        done();
      },
    });
    const logger: Logger = pino({ level: 'debug' }, sink);
    await using api = await startTestApi({ logger });
    const env = [{ name: 'PASSWORD', value: 'do-not-tell' }];
    await api.client.sandboxes.create({ name: 'quiet', spec: { ...host, env } });
    const calls = lines.map((line) => JSON.parse(line) as Record<string, unknown>).filter((line) => line['method'] !== undefined);
    expect(calls).toHaveLength(1);
    expect(calls[0]).toMatchObject({ method: 'drover.api.v1.SandboxService/CreateSandbox', caller: 'admin', code: 'ok', subject: 'quiet' });
    expect(lines.join('')).not.toContain('do-not-tell');
    expect(lines.join('')).not.toContain(api.token);
  });

  test('health is told to everybody, over HTTP/1.1 too', async () => {
    await using api = await startTestApi();
    expect((await get(api, '/healthz')).status).toBe(200);
    expect(await get(api, '/readyz')).toEqual({ status: 200, body: '{"status":"ready"}' });
  });
});

describe.each(['sqlite', 'postgres'] as const)('on a store of %s', (kind) => {
  const stores = new TestStores(kind);
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());
  const start = async (): Promise<TestApi> => await startTestApi({ storeUrl: await stores.newUrl() });

  describe('creating sandboxes', () => {
    test('one is named, placed and stored', async () => {
      await using api = await start();
      await api.addHost('alpha');
      const made = await api.client.sandboxes.create({ spec: { ...host, command: ['sh'] }, labels: { team: 'a' } });
      expect(made.name).toMatch(/^[a-z]+-[a-z]+-[a-z0-9]{4}$/);
      expect(made.hostName).toBe('alpha');
      expect(sandboxStateName(made.state)).toBe('scheduled');
      expect((await api.client.sandboxes.get(made.name)).id).toBe(made.id);
      expect(await api.client.sandboxes.list({ labels: { team: 'b' } })).toEqual([]);
      expect((await api.client.sandboxes.list({ labels: { team: 'a' } })).map(({ id }) => id)).toEqual([made.id]);
    });

    test('L-20: a call repeated with its key gives the first answer; another request with that key is refused', async () => {
      await using api = await start();
      const options = { spec: host, idempotencyKey: 'key-1' };
      const first = await api.client.sandboxes.create(options);
      const second = await api.client.sandboxes.create(options);
      expect(second).toEqual(first);
      expect(await api.client.sandboxes.list()).toHaveLength(1);
      const error = await errorOf(api.client.sandboxes.create({ ...options, name: 'other' }));
      expect(error.code).toBe('idempotency-key-reused');
    });

    test('L-20: so does one with no answer, made by two at once', async () => {
      await using api = await start();
      const options = { spec: host, idempotencyKey: 'key-1' };
      const made = await Promise.all([1, 2, 3].map(() => api.client.sandboxes.create(options)));
      expect(new Set(made.map(({ id }) => id)).size).toBe(1);
    });

    test('L-20: a repeated create of a volume that its host refused gets the reason again', async () => {
      await using api = await start();
      let asked = 0;
      api.hub.hosts.set(await api.addHost('alpha'), () => {
        asked++;
        throw new DroverError('missing-component', 'there is no mkfs.ext4');
      });
      const volumes = createClient(wire.VolumeService, transportOf(api));
      for (const count of [1, 2]) {
        const call = volumes.createVolume({ idempotencyKey: 'data', name: 'data', sizeBytes: 1n << 30n });
        await expect(call).rejects.toThrow('there is no mkfs.ext4');
        expect(asked).toBe(count);
        expect(await api.client.volumes.list()).toEqual([]);
      }
    });

    test('L-20: so is a change of what is wanted, of a host, and its removal: nothing happens twice', async () => {
      await using api = await start();
      const hostId = await api.addHost('alpha');
      const made = await api.client.sandboxes.create({ name: 'box', spec: host });
      const transport = transportOf(api);
      const sandboxes = createClient(wire.SandboxService, transport);
      const hosts = createClient(wire.HostService, transport);
      const twice = async <T>(call: () => Promise<T>, between: () => Promise<unknown>): Promise<void> => {
        const first = await call();
        await between();
        const last = await api.store.events.lastId();
        expect(await call()).toEqual(first);
        expect(await api.store.events.lastId()).toBe(last);
      };

      // Each time something else was done in between: the repeated call must not undo it.
      const stop = { idempotencyKey: 'stop', sandbox: 'box', desiredState: sandbox.DesiredState.STOPPED };
      await twice(
        async () => await sandboxes.setDesiredState(stop),
        async () => await api.client.sandboxes.start('box'),
      );
      expect((await api.store.sandboxes.find('box')).desired).toBe('running');
      await twice(
        async () => await hosts.setHostScheduling({ idempotencyKey: 'cordon', host: 'alpha', cordoned: true }),
        async () => await api.client.hosts.uncordon('alpha'),
      );
      expect((await api.store.hosts.find('alpha')).scheduling).toBe('open');
      await twice(
        async () => await hosts.removeHost({ idempotencyKey: 'rm', host: 'alpha', force: true }),
        async () => await api.addHost('alpha'),
      );
      expect((await api.store.hosts.find('alpha')).id).not.toBe(hostId);
      expect(api.hub.disconnected).toHaveLength(1);
      await twice(
        async () =>
          await sandboxes.setDesiredState({ idempotencyKey: 'delete', sandbox: made.id, desiredState: sandbox.DesiredState.DELETED }),
        async () => await api.client.sandboxes.create({ name: 'box', spec: host }),
      );
    });

    test('without a key each call is one of its own', async () => {
      await using api = await start();
      const sandboxes = await Promise.all([1, 2].map(() => api.client.sandboxes.create({ spec: host, idempotencyKey: '' })));
      expect(new Set(sandboxes.map(({ id }) => id)).size).toBe(2);
    });

    test('L-24: of many creates at once no more are placed than fit, and the others say so', async () => {
      await using api = await start();
      await api.addHost('alpha', { cpuMillis: 3_000 });
      await api.addHost('beta', { cpuMillis: 2_000 });
      const spec = { ...host, resources: { cpuMillis: 1_000 } };
      const made = await Promise.all(Array.from({ length: 8 }, () => api.client.sandboxes.create({ spec })));
      expect(made.filter(({ hostName }) => hostName === 'alpha')).toHaveLength(3);
      expect(made.filter(({ hostName }) => hostName === 'beta')).toHaveLength(2);
      const waiting = made.filter(({ hostId }) => hostId === '');
      expect(waiting.map(({ reason }) => reason)).toEqual(['unschedulable', 'unschedulable', 'unschedulable']);
    });

    test('L-24: what is larger than every host is refused when it is asked for', async () => {
      await using api = await start();
      await api.addHost('small', { cpuMillis: 2_000 });
      const error = await errorOf(api.client.sandboxes.create({ spec: { ...host, resources: { cpuMillis: 64_000 } } }));
      expect(error.code).toBe('unschedulable');
      expect(error.message).toContain('small');
      expect(await api.client.sandboxes.list()).toEqual([]);
    });

    test('L-24: what only has to wait says so, host by host', async () => {
      await using api = await start();
      await api.addHost('alpha');
      const made = await api.client.sandboxes.create({ spec: { ...host, hostLabels: { gpu: 'yes' } } });
      expect(sandboxStateName(made.state)).toBe('pending');
      expect(made.reason).toBe('unschedulable');
      expect(made.message).toContain('alpha');
    });

    test('lists come page by page', async () => {
      await using api = await start();
      const ids: string[] = [];
      for (const name of ['a', 'b', 'c']) ids.push((await api.client.sandboxes.create({ name, spec: host })).id);
      expect((await api.client.sandboxes.list()).map(({ id }) => id)).toEqual(ids);
    });

    test('a runtime that no host has is refused with those that the hosts have; before any host has joined, it waits', async () => {
      await using api = await start();
      const waiting = await api.client.sandboxes.create({ spec: { ...host, runtime: 'docker' } });
      expect(sandboxStateName(waiting.state)).toBe('pending');
      await api.addHost('alpha');
      const refused = await errorOf(api.client.sandboxes.create({ spec: { ...host, runtime: 'docker' } }));
      expect(refused.code).toBe('unschedulable');
      expect(refused.message).toBe('no host has the runtime docker (alpha: oci)');
      expect((await api.client.sandboxes.create({ spec: { ...host, runtime: 'oci' } })).hostId).not.toBe('');
    });

    const bad: readonly (readonly [string, object, string])[] = [
      ['an image that is none', { image: 'not an image' }, 'invalid-image-reference'],
      ['a relative archive', { image: 'oci-archive:x.tar' }, 'invalid-image-reference'],
      ['an environment variable with =', { ...host, env: [{ name: 'A=B', value: '' }] }, 'invalid-argument'],
      ['a destination with a path', { ...host, allow: ['example.com/x'] }, 'invalid-argument'],
      ['a destination with a port that is none', { ...host, allow: ['example.com:99999'] }, 'invalid-argument'],
      ['a mount on /proc', { ...host, mounts: [{ source: '/srv', target: '/proc/1' }] }, 'invalid-argument'],
      ['a mount that climbs', { ...host, mounts: [{ source: '/srv/../etc', target: '/x' }] }, 'invalid-argument'],
      ['a user with a slash', { ...host, user: 'a/b' }, 'invalid-argument'],
      ['a runtime that does not exist', { ...host, runtime: 'vmware' }, 'invalid-argument'],
      ['too little memory', { ...host, resources: { memoryBytes: 4096n } }, 'invalid-argument'],
      ['a host that does not exist', { ...host, host: 'nowhere' }, 'host-not-found'],
      ['a command with a NUL', { ...host, command: ['a\0b'] }, 'invalid-argument'],
    ];
    test('bad input is refused with one sentence and what to do', async () => {
      await using api = await start();
      for (const [what, spec, code] of bad) {
        const error = await errorOf(api.client.sandboxes.create({ spec }));
        expect([what, error.code]).toEqual([what, code]);
        expect(error.message).not.toBe('');
      }
      expect((await errorOf(api.client.sandboxes.create({ name: 'Not_A_Name', spec: host }))).code).toBe('invalid-name');
      expect(await api.client.sandboxes.list()).toEqual([]);
    });

    test('errors come back with code, sentence and hint', async () => {
      await using api = await start();
      await api.client.sandboxes.create({ name: 'one', spec: host });
      const taken = await errorOf(api.client.sandboxes.create({ name: 'one', spec: host }));
      expect(taken.code).toBe('name-taken');
      expect(taken.exitCode).toBe(4);
      const missing = await errorOf(api.client.sandboxes.get('nobody'));
      expect(missing.code).toBe('sandbox-not-found');
      expect(missing.message).toContain('nobody');
    });
  });

  describe('waiting', () => {
    const plan = async (api: TestApi, id: string, event: Pick<SandboxEvent, 'type' | 'data'>): Promise<void> => {
      api.worldview.publish({ ...event, kind: 'init', subject: id } as SandboxEvent);
      await api.worldview.flush();
    };

    test('wakes when the sandbox comes to the state', async () => {
      await using api = await start();
      const hostId = await api.addHost('alpha');
      const made = await api.client.sandboxes.create({ spec: host });
      const waiting = api.client.sandboxes.waitFor(made.id, ['starting']);
      await api.observe(hostId, made.id, { state: 4, startCount: 0n });
      expect(sandboxStateName((await waiting).state)).toBe('starting');
    });

    test('I-30: for running waits for the end of the init plan of this start', async () => {
      await using api = await start();
      const hostId = await api.addHost('alpha');
      const made = await api.client.sandboxes.create({ spec: host });
      let over = false;
      const waiting = api.client.sandboxes.waitFor(made.id, ['running']).finally(() => (over = true));
      await api.observe(hostId, made.id, { state: 5 });
      await plan(api, made.id, { type: 'InitStarted', data: { count: 1, startCount: 1 } });
      expect(over).toBe(false);
      await plan(api, made.id, { type: 'InitCompleted', data: { count: 1, durationMs: 1, startCount: 1 } });
      expect(await waiting).toMatchObject({ init: { state: 'completed' } });
      await expect(api.client.sandboxes.waitFor(made.id, ['running'])).resolves.toBeDefined();
    });

    test('ends with a conflict when a stop is overtaken by a start', async () => {
      await using api = await start();
      const hostId = await api.addHost('alpha');
      const made = await api.client.sandboxes.create({ name: 'web', spec: host });
      await api.observe(hostId, made.id, { state: 5 });
      const { generation } = await api.client.sandboxes.stop(made.id);
      const waiting = errorOf(api.client.sandboxes.waitFor(made.id, ['stopped', 'failed'], { generation }));
      await api.client.sandboxes.start(made.id);
      expect(await waiting).toMatchObject({ code: 'conflict', message: 'sandbox web was started again while this command waited for it' });
      // One that begins now waits for the end of the new run.
      const error = await errorOf(api.client.sandboxes.waitFor(made.id, ['stopped'], { timeoutMs: 20 }));
      expect(error.code).toBe('timed-out');
    });

    test('ends with the sandbox’s own message when it can no longer come to it', async () => {
      await using api = await start();
      const hostId = await api.addHost('alpha');
      const made = await api.client.sandboxes.create({ spec: host });
      const waiting = errorOf(api.client.sandboxes.waitFor(made.id, ['running']));
      await api.observe(hostId, made.id, { state: 9, reason: 'image-not-found', message: 'there is no image x' });
      const error = await waiting;
      expect(error.code).toBe('image-not-found');
      expect(error.message).toContain('there is no image x');
    });

    test('gives up when it was told to', async () => {
      await using api = await start();
      const made = await api.client.sandboxes.create({ spec: host });
      const error = await errorOf(api.client.sandboxes.waitFor(made.id, ['running'], { timeoutMs: 20 }));
      expect(error.code).toBe('timed-out');
      expect(error.message).toContain('still pending');
    });
  });
});

describe('the wire', () => {
  test('a message that is too large is refused', async () => {
    await using api = await startTestApi();
    const error = await errorOf(api.client.sandboxes.create({ spec: { ...host, command: ['x'.repeat(5 * 1024 * 1024)] } }));
    expect(error.code).toBe('too-large');
  });

  test('a stream that says nothing first is ended', async () => {
    await using api = await startTestApi();
    const session = connect(api.url, { ca: api.ca.caPem });
    const stream = session.request({
      ':method': 'POST',
      ':path': '/drover.api.v1.SandboxService/Exec',
      'content-type': 'application/connect+proto',
      authorization: `Bearer ${api.token}`,
    });
    stream.end();
    let body = '';
    for await (const chunk of stream) body += (chunk as Buffer).toString();
    session.close();
    expect(body).toContain('no first message');
  });
});
