import { X509Certificate } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer as createTlsServer } from 'node:tls';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { canonicalCommonName, newSandboxId } from '@drover/foundation';
import { clientAuth, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { issue, selfSigned, signedBy, type Credentials } from '../sandbox-facing/testing/certificates.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import type { SessionManager } from './manager.ts';
import type { Peer } from './testing/peer.ts';
import { eventually, World } from './testing/world.ts';

let world: World;
let sessions: SessionManager;
const live = new AbortController().signal;

beforeEach(async () => {
  world = await World.open();
  sessions = world.sessions();
});
afterEach(async () => await world[Symbol.asyncDispose]());

/** The failed checks of the last session. */
async function notPassed(id: SandboxRow['id']): Promise<readonly string[]> {
  await world.worldview.flush();
  const { checks } = await world.worldview.get(id);
  return checks
    .filter(({ source, verdict }) => source === 'session' && verdict !== 'pass')
    .map(({ check, verdict }) => `${check}: ${verdict}`);
}

/** A peer at the address of a running sandbox, with these credentials. */
async function impostor(credentials: (row: SandboxRow) => Promise<Credentials>): Promise<{ row: SandboxRow; peer: Peer }> {
  const row = await world.sandbox({ name: 'box' });
  const peer = await world.peer({ id: row.id, credentials: await credentials(row) });
  sessions.dial(row.id);
  return { row, peer };
}

/** I-1 and the other rules for every untrusted peer. */
async function isKeptAndUsable(row: SandboxRow, peer: Peer, reason: string): Promise<void> {
  await eventually(async () => await world.eventTypes(row.id)).toContain('InitFailed');
  const events = await world.events(row.id);
  expect(events.map(({ type }) => type).filter((type) => type !== 'AgentRegistered')).toEqual([
    'SessionConnecting',
    'SessionConnected',
    'AgentUntrusted',
    'InitFailed',
  ]);
  expect(events.find(({ type }) => type === 'AgentUntrusted')?.data).toMatchObject({ reason });
  expect(events.find(({ type }) => type === 'InitFailed')?.data).toMatchObject({
    reason: 'identity-untrusted',
    startCount: 1,
    step: 'agent-ready',
  });
  // The session stays open for calls, and no step of a plan is sent.
  const client = await sessions.client(row.id, live);
  for await (const { data } of client.logs({})) expect(Buffer.from(data).toString()).toBe('a line');
  expect(sessions.status(row.id).state).toBe('connected');
  expect(peer.connections).toBe(1);
  expect(peer.steps()).toEqual([]);
  await eventually(async () => await world.row(row.id)).toMatchObject({
    observed: 'failed',
    reason: 'init-failed',
    message: expect.stringContaining('init failed: no plan is sent to a peer that is not trusted'),
  });
}

/**
 * The certificate with another text for its first or second date. Both are in one SEQUENCE of 30 bytes, each with the tag 0x17 and 13
 * characters (RFC 5280, section 4.1.2.5.1). The first two bytes alone could also occur in the random serial number before it.
 */
function withoutDate(certificatePem: string, which: number): string {
  const der = Buffer.from(new X509Certificate(certificatePem).raw);
  const validity = der.indexOf(Buffer.from([0x30, 30, 0x17, 13]));
  der.write('no date at al', validity + (which === 0 ? 4 : 19), 'latin1');
  return `-----BEGIN CERTIFICATE-----\n${der.toString('base64')}\n-----END CERTIFICATE-----\n`;
}

describe('I-1: a session is opened with any peer:', () => {
  async function foreignAuthority(): Promise<CertificateAuthority> {
    const directory = await mkdtemp(join(tmpdir(), 'drover-foreign-'));
    const ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    await rm(directory, { recursive: true });
    return ca;
  }

  it('an untrusted root', async () => {
    const foreign = await foreignAuthority();
    const { row, peer } = await impostor(async ({ id }) => await issue(async (csr) => await foreign.signSandbox(id, 'test.box', csr)));
    await isKeptAndUsable(row, peer, 'certificate-invalid');
    expect(await notPassed(row.id)).toEqual(['chain: fail', 'thumbprint: unknown']);
  });

  it('of a prepared start, while the store is unavailable: the start does not fail', async () => {
    const foreign = await foreignAuthority();
    const row = await world.sandbox({ name: 'box' });
    const completed = { count: 1, durationMs: 1, startCount: 1 };
    world.worldview.publish({ kind: 'init', type: 'InitCompleted', subject: row.id, data: completed });
    await world.worldview.flush();
    let unreadable = 2;
    const { worldview } = world;
    const restarted = world.sessions({
      worldview: {
        get: async (id) => (unreadable-- > 0 ? await Promise.reject(new Error('the disk is unavailable')) : await worldview.get(id)),
        record: (...checks) => worldview.record(...checks),
      },
    });
    await world.peer({ id: row.id, credentials: await issue(async (csr) => await foreign.signSandbox(row.id, 'test.box', csr)) });
    restarted.dial(row.id);
    await eventually(async () => (await world.eventTypes(row.id)).filter((type) => type === 'SessionConnected')).toHaveLength(3);
    expect(await world.eventTypes(row.id)).not.toContain('InitFailed');
    expect(await world.row(row.id)).toMatchObject({ observed: 'running' });
  });

  it('an expired leaf', async () => {
    const expired = await world.shortLived(-1_000);
    const { row, peer } = await impostor(async ({ id }) => await issue(async (csr) => await expired.signSandbox(id, 'test.box', csr)));
    await isKeptAndUsable(row, peer, 'certificate-invalid');
    expect(await notPassed(row.id)).toEqual(['validity: fail', 'thumbprint: unknown']);
  });

  it.each([0, 1])('an invalid date', async (which) => {
    const { row, peer } = await impostor(async ({ id }) => {
      const credentials = await selfSigned({ commonNames: ['test.box'], uris: [world.ca.names.sandbox(id)] });
      return { ...credentials, certificatePem: withoutDate(credentials.certificatePem, which) };
    });
    await isKeptAndUsable(row, peer, 'certificate-invalid');
    expect(await notPassed(row.id)).toEqual(['chain: fail', 'validity: fail', 'eku: fail', 'thumbprint: unknown']);
  });

  it('a wrong EKU', async () => {
    const { row, peer } = await impostor(
      async ({ id }) =>
        await signedBy(
          { certificatePem: world.ca.caPem, keyPem: world.caKeyPem },
          { commonNames: ['test.box'], uris: [world.ca.names.sandbox(id)], usages: [clientAuth] },
        ),
    );
    await isKeptAndUsable(row, peer, 'certificate-invalid');
    expect(await notPassed(row.id)).toEqual(['eku: fail', 'thumbprint: unknown']);
  });

  it('a wrong CN', async () => {
    const { row, peer } = await impostor(async ({ id }) => await issue(async (csr) => await world.ca.signSandbox(id, 'test.other', csr)));
    await isKeptAndUsable(row, peer, 'cn-mismatch');
    expect(await notPassed(row.id)).toEqual(['cn: fail', 'thumbprint: unknown']);
  });

  it('the name of another sandbox', async () => {
    const { row, peer } = await impostor(
      async () => await issue(async (csr) => await world.ca.signSandbox(newSandboxId(), 'test.box', csr)),
    );
    await isKeptAndUsable(row, peer, 'certificate-invalid');
    expect(await notPassed(row.id)).toEqual(['san: fail', 'thumbprint: unknown']);
  });

  it('a certificate that was not issued for a start of it', async () => {
    const { row, peer } = await impostor(async ({ id }) => await issue(async (csr) => await world.ca.signSandbox(id, 'test.box', csr)));
    await isKeptAndUsable(row, peer, 'register-failed');
    expect(peer.asked).toEqual(['hello']);
  });

  it('the registered certificate of another sandbox', async () => {
    const victim = await world.box({ name: 'victim' });
    await world.register(victim, victim.token);
    const { row, peer } = await impostor(() => Promise.resolve(victim.credentials));
    await isKeptAndUsable(row, peer, 'cn-mismatch');
    expect(await notPassed(row.id)).toEqual(['cn: fail', 'san: fail', 'thumbprint: unknown']);
  });

  it('the registered certificate of another sandbox, in place of its own', async () => {
    const box = await world.box({ name: 'box' });
    await world.register(box, box.token);
    const victim = await world.box({ name: 'victim' });
    await world.register(victim, victim.token);
    const peer = await world.peer({ id: box.id, credentials: victim.credentials });
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitFailed');
    expect((await world.events(box.id)).find(({ type }) => type === 'AgentUntrusted')?.data).toMatchObject({
      reason: 'thumbprint-mismatch',
    });
    expect(await notPassed(box.id)).toEqual(['cn: fail', 'san: fail', 'thumbprint: fail']);
    expect(peer.steps()).toEqual([]);
  });

  it('no certificate: the TLS 1.3 handshake fails, and the dial retries', async () => {
    const server = createTlsServer({ minVersion: 'TLSv1.3' });
    server.on('tlsClientError', () => undefined);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const row = await world.sandbox({ name: 'box' });
    world.hub.ports.set(row.id, (server.address() as AddressInfo).port);
    sessions.dial(row.id);
    await eventually(() => sessions.status(row.id).attempts).toBeGreaterThan(2);
    expect(sessions.status(row.id)).toMatchObject({ state: 'connecting', lastError: expect.stringMatching(/TLS|handshake/i) });
    sessions.close(row.id);
    await eventually(() => world.hub.tunnels.filter(({ closed }) => !closed)).toEqual([]);
    server.close();
  });

  it('another id in its HelloAck', async () => {
    const box = await world.box({ name: 'box', hello: { sandboxId: newSandboxId() } });
    await world.register(box, box.token);
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitFailed');
    expect((await world.events(box.id)).find(({ type }) => type === 'AgentUntrusted')?.data).toMatchObject({
      reason: 'certificate-invalid',
      message: expect.stringContaining('its init claims to be'),
    });
    expect(sessions.status(box.id).state).toBe('connected');
  });
});

describe('I-27: at Hello', () => {
  it('a miss makes the sandbox register, once, before the plan', async () => {
    const box = await world.box();
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    expect(await world.eventTypes(box.id)).toEqual([
      'SessionConnecting',
      'SessionConnected',
      'AgentRegistered',
      'AgentTrusted',
      'InitStarted',
      'InitStepStarted',
      'InitStepCompleted',
      'InitCompleted',
    ]);
    expect(box.peer.asked).toEqual(['hello', 'registerRequired', 'agentReady']);
    expect(await notPassed(box.id)).toEqual([]);
    expect(await world.worldview.get(box.id)).toMatchObject({
      session: {
        state: 'connected',
        thumbprint: box.credentials.thumbprint,
        peerCommonName: 'test.' + box.row.name,
        address: box.row.address,
      },
      identity: { verdict: 'trusted' },
      init: { state: 'completed', startCount: 1 },
    });
  });

  it('a match needs no registration: Hello and AgentReady are sent together', async () => {
    const box = await world.box({ behave: { hello: () => undefined } });
    await world.register(box, box.token);
    sessions.dial(box.id);
    await eventually(() => box.peer.asked).toEqual(['hello', 'agentReady']);
    expect(await world.eventTypes(box.id)).not.toContain('SessionConnected');
  });

  it('the report of init about its registration proves nothing', async () => {
    const box = await world.box({
      behave: { registerRequired: ({ id }, session) => session.answer(id, { case: 'registerDone', value: {} }) },
    });
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitFailed');
    const events = await world.events(box.id);
    expect(events.filter(({ type }) => type.startsWith('Agent')).map(({ type, data }) => [type, data['ok'] ?? data['reason']])).toEqual([
      ['AgentRegistered', false],
      ['AgentUntrusted', 'register-failed'],
    ]);
  });

  it('a refusal because of the address is reported as such', async () => {
    const box = await world.box();
    box.peer.behave = {
      registerRequired: async ({ id }, session) => {
        await expect(world.register(box, box.token, '10.9.9.9')).rejects.toThrow();
        session.refuse(id, 'permission-denied', 'refused');
      },
    };
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitFailed');
    expect((await world.events(box.id)).find(({ type }) => type === 'AgentUntrusted')?.data).toMatchObject({
      reason: 'peer-address-mismatch',
    });
  });

  it('a successful registration counts, even if its response is lost', async () => {
    const box = await world.box();
    box.peer.behave = {
      registerRequired: async ({ id }, session) => {
        await world.register(box, box.token);
        session.refuse(id, 'control-plane-unreachable', 'the answer was lost');
      },
    };
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
  });

  it('an unreadable registry is retried on the open session', async () => {
    let asked = 0;
    const { registry } = world;
    const flaky = world.sessions({
      registry: {
        standing: async (...which) => {
          if (++asked <= 2) throw new Error('the store is away');
          return await registry.standing(...which);
        },
        secondToken: async (...which) => await registry.secondToken(...which),
        renewed: async (...which) => await registry.renewed(...which),
        seen: (...which) => registry.seen(...which),
        findAll: async (...which) => await registry.findAll(...which),
      },
    });
    const box = await world.box();
    flaky.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    const types = await world.eventTypes(box.id);
    expect(types.slice(0, 4)).toEqual(['SessionConnecting', 'SessionConnected', 'AgentUntrusted', 'AgentRegistered']);
    expect(types.filter((type) => type === 'AgentUntrusted' || type === 'SessionConnected')).toHaveLength(2);
    expect(types).toContain('AgentTrusted');
  });

  it('I-10: frames of a trusted session refresh when it was last seen', async () => {
    const box = await world.box();
    const before = Date.now();
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    await eventually(async () => (await world.registry.snapshot())[0]?.lastSeenAt ?? 0).toBeGreaterThan(before);
  });
});

describe('a registered sandbox', () => {
  async function prepared(): ReturnType<World['box']> {
    const box = await world.box();
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('InitCompleted');
    return box;
  }

  it('I-4, I-11: loses its session when it is revoked, and is redialled as untrusted', async () => {
    const box = await prepared();
    await world.registry.revoke(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('AgentUntrusted');
    const types = await world.eventTypes(box.id);
    expect(types).not.toContain('SessionBroken');
    // Its plan was completed before: it keeps running and stays reachable.
    expect(types).not.toContain('InitFailed');
    await sessions.client(box.id, live);
    expect((await world.worldview.get(box.id)).identity).toMatchObject({ verdict: 'revoked' });
    expect(box.peer.steps()).toEqual([]);
  });

  it('I-11: loses its session at the comparison with the registry if the event of its eviction was lost', async () => {
    const { registry } = world;
    await sessions.closeAll();
    const deaf = world.sessions({
      registry: {
        standing: async (...which) => await registry.standing(...which),
        secondToken: async (...which) => await registry.secondToken(...which),
        renewed: async (...which) => await registry.renewed(...which),
        seen: (...which) => registry.seen(...which),
        findAll: async (...which) => await registry.findAll(...which),
      },
      feed: {
        listen: () => () => undefined,
        wake: world.feed.wake,
        until: async (...which) => await world.feed.until(...which),
      },
    });
    const [box, other] = [await world.box(), await world.box()];
    for (const { id } of [box, other]) {
      deaf.dial(id);
      await eventually(async () => await world.eventTypes(id)).toContain('InitCompleted');
    }
    await deaf.compare();
    await world.registry.evict(box.id, 'evicted');
    await deaf.compare();
    await eventually(async () => await world.eventTypes(box.id)).toContain('AgentUntrusted');
    await deaf.client(box.id, live);
    expect([box.peer.sessions.length, other.peer.sessions.length]).toEqual([2, 1]);
    // Its peer is untrusted now, so it is not compared.
    await deaf.compare();
    await deaf.client(box.id, live);
    expect(box.peer.sessions).toHaveLength(2);
  });

  it('I-4: registers again with a second token after it is reinstated', async () => {
    const box = await prepared();
    await world.registry.revoke(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('AgentUntrusted');
    const sessionsBefore = box.peer.sessions.length;
    await world.registry.reinstate(box.id);
    await eventually(() => box.peer.sessions.length).toBeGreaterThan(sessionsBefore);
    await eventually(() => box.peer.steps()).toEqual(['agent-ready']);
    await eventually(async () => (await world.worldview.get(box.id)).identity.verdict).toBe('trusted');
    const required = box.peer.sessions.at(-1)?.requests.find(({ payload }) => payload.case === 'registerRequired');
    expect(required?.payload.value).toMatchObject({ bootstrapToken: expect.stringMatching(/./) });
  });

  it('I-11: has neither a session nor a row after it is destroyed, and no break is published', async () => {
    const box = await prepared();
    await world.store.sandboxes.setDesired(box.id, 'deleted');
    await world.store.sandboxes.copyAbsent(box.id, world.host.id);
    await world.registry.evict(box.id, 'destroyed');
    await eventually(() => box.peer.connections).toBe(0);
    await eventually(() => sessions.status(box.id).state).toBe('none');
    const types = await world.eventTypes(box.id);
    expect(types.filter((type) => type === 'SessionBroken' || type === 'SessionFailed')).toEqual([]);
  });

  it('cannot be impersonated with the row of a destroyed sandbox', async () => {
    const old = await prepared();
    // A new sandbox has the same name, and a peer with the old key responds for it.
    await world.store.sandboxes.setDesired(old.id, 'deleted');
    await world.store.sandboxes.copyAbsent(old.id, world.host.id);
    const row = await world.sandbox({ name: old.row.name });
    const peer = await world.peer({ id: row.id, credentials: old.credentials });
    sessions.dial(row.id);
    await eventually(async () => await world.eventTypes(row.id)).toContain('InitFailed');
    expect((await world.events(row.id)).find(({ type }) => type === 'AgentUntrusted')?.data).toMatchObject({
      reason: 'certificate-invalid',
    });
    expect(await notPassed(row.id)).toEqual(['san: fail', 'thumbprint: unknown']);
    expect(peer.steps()).toEqual([]);
  });

  it('I-11: registers its new certificate when it is started again', async () => {
    const box = await prepared();
    await box.peer[Symbol.asyncDispose]();
    await world.observe(box.id, 'STOPPED', { startCount: 1n });
    await world.store.sandboxes.setDesired(box.id, 'stopped');
    await world.store.sandboxes.setDesired(box.id, 'running');
    const next = await world.start(await world.row(box.id));
    const peer = await world.peer({ id: box.id, credentials: next.credentials });
    peer.behave = {
      registerRequired: async (request, session) => {
        await world.register({ ...next, row: await world.row(box.id) }, next.token);
        peer.good(request, session);
      },
    };
    await world.observe(box.id, 'RUNNING', { startCount: 2n, address: box.row.address });
    await eventually(() => peer.steps()).toEqual(['agent-ready']);
    const registered = (await world.events(box.id)).filter(({ type }) => type === 'AgentRegistered').map(({ data }) => data['startCount']);
    expect(registered).toEqual([1, 2]);
  });
});

describe('I-6: renewal', () => {
  it('a certificate is renewed for the same key after two thirds of its life, and registered before it is presented', async () => {
    // Certificates begin five minutes in the past: this one is already past two thirds, the next one is not.
    const box = await world.box({ ca: await world.shortLived(100_000) });
    const installed = Promise.withResolvers<string>();
    const known: (string | undefined)[] = [];
    box.peer.behave = {
      ...box.peer.behave,
      installCertificate: async (request, session) => {
        known.push((await world.registry.snapshot())[0]?.nextThumbprint);
        if (request.payload.case === 'installCertificate') installed.resolve(request.payload.value.certificatePem);
        box.peer.good(request, session);
      },
    };
    sessions.dial(box.id);
    const certificatePem = await installed.promise;
    const [renewed, old] = [new X509Certificate(certificatePem), new X509Certificate(box.credentials.certificatePem)];
    expect(renewed.publicKey.equals(old.publicKey)).toBe(true);
    expect([renewed.subject, renewed.subjectAltName]).toEqual([old.subject, old.subjectAltName]);
    const thumbprint = renewed.fingerprint256.replaceAll(':', '').toLowerCase();
    expect(known).toEqual([thumbprint]);
    // The peer has the key, so the open session continues under the new certificate.
    await eventually(async () => (await world.registry.snapshot())[0]).toMatchObject({ thumbprint, nextThumbprint: undefined });
    expect((await world.events(box.id)).find(({ type }) => type === 'SessionRenewed')?.data).toEqual({ thumbprint });
    expect((await world.worldview.get(box.id)).session).toMatchObject({ state: 'connected', thumbprint });
    // On the redial it presents the new certificate, and is trusted without a registration.
    await box.peer[Symbol.asyncDispose]();
    const credentials = { certificatePem, keyPem: box.credentials.keyPem };
    const peer = await world.peer({ id: box.id, credentials });
    await eventually(() => peer.steps()).toEqual(['agent-ready']);
    expect(peer.asked).not.toContain('registerRequired');
  });

  /** A registered and prepared sandbox whose certificate has expired, and which installs the certificates that it receives. */
  async function overslept(): Promise<{ id: SandboxRow['id']; credentials: Credentials; peer: Peer }> {
    const row = await world.sandbox({});
    const expired = await world.shortLived(-1_000);
    const credentials = await issue(async (csr) => await expired.signSandbox(row.id, canonicalCommonName(row.project, row.name), csr));
    await world.admit(row, credentials.thumbprint);
    const data = { count: 1, durationMs: 1, startCount: 1 };
    world.worldview.publish({ kind: 'init', type: 'InitCompleted', subject: row.id, data });
    await world.worldview.flush();
    const peer = await world.peer({ id: row.id, credentials });
    peer.behave = {
      installCertificate: (request, session) => {
        if (request.payload.case !== 'installCertificate') return;
        const { certificatePem } = request.payload.value;
        peer.show({ certificatePem, keyPem: credentials.keyPem });
        peer.good(request, session);
      },
    };
    return { id: row.id, credentials, peer };
  }

  it('I-27: a peer with an expired certificate is untrusted until it presents the renewed one', async () => {
    const box = await overslept();
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('AgentTrusted');
    const types = (await world.eventTypes(box.id)).filter((type) => type.startsWith('Session') || type.startsWith('Agent'));
    expect(types.filter((type) => type !== 'SessionRenewed' && type !== 'AgentRegistered')).toEqual([
      'SessionConnecting',
      'SessionConnected',
      'AgentUntrusted',
      'SessionBroken',
      'SessionConnecting',
      'SessionConnected',
      'AgentTrusted',
    ]);
    expect((await world.events(box.id)).find(({ type }) => type === 'AgentUntrusted')?.data).toMatchObject({
      reason: 'certificate-invalid',
    });
    // No step of a plan was sent before; the last one follows AgentTrusted.
    await eventually(() => box.peer.sessions.map(({ requests }) => requests.map(({ payload }) => payload.case))).toEqual([
      ['hello', 'installCertificate'],
      ['hello', 'agentReady'],
    ]);
    expect(await notPassed(box.id)).toEqual([]);
    await eventually(async () => (await world.registry.snapshot())[0]?.thumbprint).not.toBe(box.credentials.thumbprint);
  });

  it('I-4: an expired certificate of a revoked identity is not renewed', async () => {
    const box = await overslept();
    await world.registry.revoke(box.id);
    sessions.dial(box.id);
    await eventually(async () => await world.eventTypes(box.id)).toContain('AgentUntrusted');
    await sessions.client(box.id, live);
    expect((await world.worldview.get(box.id)).identity.verdict).toBe('revoked');
    expect(box.peer.asked).toEqual(['hello']);
  });
});
