import { connect } from 'node:http2';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { DroverError, newHostId, type ErrorCode } from '@drover/foundation';
import { createKeyAndRequest, formatJoinToken, newSecret } from '@drover/pki';
import { api as wire, link } from '@drover/protocol';
import { describe, expect, test } from 'vitest';
import type { ResultValue } from '../hub/hub.ts';
import { draft } from '../store/testing/fixtures.ts';
import { startTestApi, type TestApi } from './testing/server.ts';

function fail(code: ErrorCode, message: string): never {
  throw new DroverError(code, message);
}

interface Answer {
  readonly status: string;
  readonly headers: string;
  readonly body: Buffer;
}

/** JoinService.Join as a host calls it: no API token. */
async function join(api: TestApi, request: wire.JoinRequest): Promise<Answer> {
  const session = connect(api.url, { ca: api.ca.caPem });
  try {
    const stream = session.request({ ':method': 'POST', ':path': '/drover.api.v1.JoinService/Join', 'content-type': 'application/proto' });
    stream.end(toBinary(wire.JoinRequestSchema, request));
    let headers: Record<string, unknown> = {};
    stream.on('response', (given) => (headers = { ...given }));
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    delete headers['date'];
    return { status: String(headers[':status']), headers: JSON.stringify(headers), body: Buffer.concat(chunks) };
  } finally {
    session.close();
  }
}

async function request(token: string, hostId: string = newHostId()): Promise<wire.JoinRequest> {
  const { csrDer } = createKeyAndRequest();
  return create(wire.JoinRequestSchema, { token, hostId, hostname: 'alpha', csrDer });
}

describe('joining', () => {
  test('L-1, L-2: a host with a token gets its certificate, and the labels of the token', async () => {
    await using api = await startTestApi();
    const { token, command } = await api.client.hosts.createJoinToken({ labels: { rack: '7' } });
    expect(token).toContain(api.ca.fingerprint);
    expect(command).toBe(`drover agent join https://127.0.0.1:7443 --token ${token}`);
    const answer = await join(api, await request(token));
    expect(answer.status).toBe('200');
    const joined = fromBinary(wire.JoinResponseSchema, answer.body);
    expect(joined.certificatePem).toContain('BEGIN CERTIFICATE');
    expect(joined).toMatchObject({ linkAddress: ':7444', trustDomain: 'test.drover', labels: { rack: '7' } });
    expect((await api.client.hosts.list()).map(({ name }) => name)).toEqual(['alpha']);
  });

  test('L-3: on the wire a used, an unknown, an expired and a broken token, and a removed host, are the same', async () => {
    await using api = await startTestApi();
    const { token: used } = await api.client.hosts.createJoinToken();
    expect((await join(api, await request(used))).status).toBe('200');
    const unknown = formatJoinToken({ caFingerprint: api.ca.fingerprint, secret: newSecret() });
    const { token: expired } = await api.client.hosts.createJoinToken({ ttlSeconds: 1 });
    const removed = newHostId();
    const { token: twice } = await api.client.hosts.createJoinToken({ uses: 2 });
    expect((await join(api, await request(twice, removed))).status).toBe('200');
    await api.client.hosts.remove(removed);
    const expiry = Date.now() + 1_100;
    while (Date.now() < expiry) await new Promise((resolve) => setTimeout(resolve, 50));
    const answers = [
      await join(api, await request(used)),
      await join(api, await request(unknown)),
      await join(api, await request(expired)),
      await join(api, await request('no token at all')),
      await join(api, await request(twice, removed)),
    ];
    const [first] = answers;
    expect(first?.status).toBe('403');
    for (const answer of answers) expect(answer).toEqual(first);
  });

  test('a request that cannot be signed does not use the token up', async () => {
    await using api = await startTestApi();
    const { token } = await api.client.hosts.createJoinToken();
    const good = await request(token);
    const broken = await join(api, { ...good, csrDer: new Uint8Array([1, 2, 3]) });
    expect(broken.status).toBe('400');
    expect((await join(api, good)).status).toBe('200');
  });

  test('L-20: a token asked for twice with one key is one token', async () => {
    await using api = await startTestApi();
    const { HostService } = wire;
    const ask = async (): Promise<wire.JoinToken> => {
      const session = connect(api.url, { ca: api.ca.caPem });
      const stream = session.request({
        ':method': 'POST',
        ':path': `/${HostService.typeName}/CreateJoinToken`,
        'content-type': 'application/proto',
        authorization: `Bearer ${api.token}`,
      });
      stream.end(toBinary(wire.CreateJoinTokenRequestSchema, create(wire.CreateJoinTokenRequestSchema, { idempotencyKey: 'one' })));
      const chunks: Buffer[] = [];
      for await (const chunk of stream) chunks.push(chunk as Buffer);
      session.close();
      return fromBinary(wire.JoinTokenSchema, Buffer.concat(chunks));
    };
    const [first, second] = [await ask(), await ask()];
    expect(second.token).toBe(first.token);
    expect((await join(api, await request(first.token))).status).toBe('200');
    expect((await join(api, await request(first.token))).status).toBe('403');
  });
});

describe('hosts', () => {
  test('L-8: show what may still be given out', async () => {
    await using api = await startTestApi();
    await api.addHost('alpha', { cpuMillis: 4_000 });
    await api.client.sandboxes.create({ spec: { image: 'host', resources: { cpuMillis: 1_500 } } });
    const host = await api.client.hosts.get('alpha');
    expect(host.state).toBe(wire.HostState.READY);
    expect(host.allocatable?.cpuMillis).toBe(2_500);
    expect(host.sandboxes).toBe(1);
  });

  test('L-27: a cordoned one takes nothing new until it is uncordoned', async () => {
    await using api = await startTestApi();
    await api.addHost('alpha');
    expect((await api.client.hosts.cordon('alpha')).state).toBe(wire.HostState.CORDONED);
    expect((await api.client.sandboxes.create({ spec: { image: 'host' } })).hostId).toBe('');
    expect((await api.client.hosts.uncordon('alpha')).state).toBe(wire.HostState.READY);
    expect((await api.client.sandboxes.create({ spec: { image: 'host' } })).hostName).toBe('alpha');
  });

  test('L-27: an empty one is drained at once', async () => {
    await using api = await startTestApi();
    await api.addHost('alpha');
    const steps: wire.DrainProgress[] = [];
    for await (const step of api.client.hosts.drain('alpha')) steps.push(step);
    expect(steps.at(-1)).toMatchObject({ done: true, remaining: 0 });
    expect((await api.client.hosts.get('alpha')).state).toBe(wire.HostState.DRAINING);
  });

  test('L-4: a removed one loses its stream; one that holds sandboxes goes only by force', async () => {
    await using api = await startTestApi();
    const hostId = await api.addHost('alpha');
    await api.client.sandboxes.create({ spec: { image: 'host' } });
    await expect(api.client.hosts.remove('alpha')).rejects.toMatchObject({ code: 'host-not-empty' });
    expect(api.hub.disconnected).toEqual([]);
    await api.client.hosts.remove('alpha', { force: true });
    expect(api.hub.disconnected).toEqual([{ hostId, reason: link.GoAway_Reason.REMOVED }]);
    await expect(api.client.hosts.get('alpha')).rejects.toMatchObject({ code: 'host-not-found' });
  });

  test('L-15: diagnosing one that is not connected fails at once', async () => {
    await using api = await startTestApi();
    const hostId = await api.addHost('alpha');
    api.hub.hosts.delete(hostId);
    await expect(api.client.hosts.diagnose('alpha')).rejects.toMatchObject({ code: 'host-unavailable' });
  });

  test('a connected one diagnoses itself; one that answers with something else is told so', async () => {
    await using api = await startTestApi();
    const hostId = await api.addHost('alpha');
    const asked: unknown[] = [];
    const diagnostics = create(link.DiagnosticsSchema, { findings: [{ level: link.Finding_Level.PROBLEM, message: 'runc is missing' }] });
    api.hub.hosts.set(hostId, (operation, { deadline }) => {
      asked.push(operation.case, deadline instanceof Date);
      return { case: 'diagnostics', value: diagnostics };
    });
    expect((await api.client.hosts.diagnose('alpha')).findings).toEqual(diagnostics.findings);
    expect(asked).toEqual(['collectDiagnostics', true]);
    api.hub.hosts.set(hostId, () => ({ case: undefined }));
    await expect(api.client.hosts.diagnose('alpha')).rejects.toMatchObject({ code: 'protocol-violation' });
  });
});

describe('images', () => {
  test('are pulled on every ready host; one that fails does not stop the others', async () => {
    await using api = await startTestApi();
    const good = await api.addHost('good');
    const bad = await api.addHost('bad');
    api.hub.hosts.set(good, (_operation, { onProgress }) => {
      onProgress?.(create(link.CommandProgressSchema, { message: 'layer 1', done: 5n, total: 10n }));
      return { case: 'image', value: create(link.ImageSchema, { reference: 'alpine', digest: 'sha256:1' }) };
    });
    api.hub.hosts.set(bad, () => {
      throw new DroverError('image-not-found', 'there is no image alpine', { hint: 'check its name' });
    });
    const last = new Map<string, wire.PullImageResponse>();
    for await (const news of api.client.images.pull('alpine')) last.set(news.hostName, news);
    expect(last.get('good')?.image?.digest).toBe('sha256:1');
    expect(last.get('bad')?.error).toMatchObject({ code: 'image-not-found', hint: 'check its name' });
  });

  test('are listed with the hosts that could not be asked', async () => {
    await using api = await startTestApi();
    const good = await api.addHost('good');
    api.hub.hosts.delete(await api.addHost('away'));
    const value = create(link.ImagesSchema, { images: [create(link.ImageSchema, { reference: 'alpine' })] });
    api.hub.hosts.set(good, () => ({ case: 'images', value }));
    const { images, failures } = await api.client.images.list();
    expect(images.map(({ hostName, image }) => [hostName, image?.reference])).toEqual([['good', 'alpine']]);
    expect(failures.map(({ hostName, error }) => [hostName, error?.code])).toEqual([['away', 'host-unavailable']]);
  });

  test('are removed where they are; that another host has none is no failure, that one uses it is', async () => {
    await using api = await startTestApi();
    const asked: string[] = [];
    const answers: [string, () => ResultValue][] = [
      ['has', () => ({ case: undefined })],
      ['none', () => fail('image-not-found', 'there is no image alpine')],
      ['uses', () => fail('image-in-use', 'a sandbox uses alpine')],
    ];
    for (const [name, answer] of answers) {
      api.hub.hosts.set(await api.addHost(name), (operation) => {
        asked.push(operation.case === 'removeImage' ? `${name} ${operation.value.image}` : 'something else');
        return answer();
      });
    }
    const { failures } = await api.client.images.remove('alpine');
    expect(failures.map(({ hostName, error }) => [hostName, error?.code])).toEqual([['uses', 'image-in-use']]);
    expect(asked.sort()).toEqual(['has alpine', 'none alpine', 'uses alpine']);
    // Of one host alone its own answer is the call's.
    await expect(api.client.images.remove('alpine', { host: 'uses' })).rejects.toMatchObject({ code: 'image-in-use' });
    await expect(api.client.images.remove('alpine', { host: 'none' })).rejects.toMatchObject({ code: 'image-not-found' });
    await expect(api.client.images.remove('')).rejects.toMatchObject({ code: 'invalid-image-reference' });
  });

  test('that no host has cannot be removed', async () => {
    await using api = await startTestApi();
    for (const name of ['a', 'b']) api.hub.hosts.set(await api.addHost(name), () => fail('image-not-found', 'there is no image alpine'));
    await expect(api.client.images.remove('alpine')).rejects.toMatchObject({ code: 'image-not-found' });
  });

  test('are pruned on every ready host; what each freed is added up', async () => {
    await using api = await startTestApi();
    const ages: bigint[] = [];
    for (const [name, image] of [
      ['a', 'alpine'],
      ['b', 'debian'],
    ] as const) {
      api.hub.hosts.set(await api.addHost(name), (operation) => {
        if (operation.case === 'pruneImages') ages.push(operation.value.olderThanSeconds);
        return { case: 'pruned', value: create(link.PruneReportSchema, { removed: [image, 'both'], freedBytes: 100n }) };
      });
    }
    api.hub.hosts.set(await api.addHost('broken'), () => fail('disk-full', 'no space is left'));
    const pruned = await api.client.images.prune({ olderThanSeconds: 60 });
    expect([...pruned.removed].sort()).toEqual(['alpine', 'both', 'debian']);
    expect(pruned.freedBytes).toBe(200n);
    expect(pruned.failures.map(({ hostName, error }) => [hostName, error?.code])).toEqual([['broken', 'disk-full']]);
    expect(ages).toEqual([60n, 60n]);
  });
});

describe('events', () => {
  test('I-35: a watcher gets everything in order, and goes on by itself after the server was away', async () => {
    await using api = await startTestApi();
    await api.client.sandboxes.create({ name: 'a', spec: { image: 'host' } });
    const seen: bigint[] = [];
    const names: string[] = [];
    const stop = new AbortController();
    const watching = (async () => {
      for await (const event of api.client.events.watch({ fromStart: true, kinds: ['sandbox'], signal: stop.signal })) {
        seen.push(event.id);
        if (event.type === 'SandboxCreated') names.push((JSON.parse(event.dataJson) as { name: string }).name);
        if (names.includes('c')) return;
      }
    })();
    await api.client.sandboxes.create({ name: 'b', spec: { image: 'host' } });
    await api.stop();
    await api.restart();
    await api.client.sandboxes.create({ name: 'c', spec: { image: 'host' } });
    await watching;
    stop.abort();
    expect(names).toEqual(['a', 'b', 'c']);
    expect(seen).toEqual([...new Set(seen)].sort((x, y) => Number(x - y)));
  });

  test('I-35: a watcher from now on whose stream breaks before its first event misses nothing', async () => {
    for (const already of [0, 1]) {
      await using api = await startTestApi();
      const create = async (name: string): Promise<unknown> => await api.client.sandboxes.create({ name, spec: { image: 'host' } });
      if (already > 0) await create('before');
      const standing = Promise.withResolvers<void>();
      const watching = (async () => {
        for await (const event of api.client.events.watch({ kinds: ['sandbox'], onBegan: () => standing.resolve() })) {
          return (JSON.parse(event.dataJson) as { name: string }).name;
        }
        return undefined;
      })();
      await standing.promise;
      await api.stop();
      // Nobody is connected: it is written, and no stream carries it.
      await api.store.sandboxes.create(draft({ name: 'between' }));
      await api.restart();
      expect(await watching).toBe('between');
    }
  });

  test('one that does not follow ends with what there is', async () => {
    await using api = await startTestApi();
    const { id } = await api.client.sandboxes.create({ name: 'a', spec: { image: 'host' } });
    const types: string[] = [];
    for await (const event of api.client.events.watch({ fromStart: true, follow: false, subject: id })) types.push(event.type);
    expect(types[0]).toBe('SandboxCreated');
  });
});
