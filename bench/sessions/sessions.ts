import { execFileSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import { newSandboxId } from '@drover/foundation';
import { createKeyAndRequest, openCertificateAuthority } from '@drover/pki';
import { connectDrover, type DroverClient } from '@drover/sdk';
import type { Pems } from '../bare-grpc.ts';
import { Child, type MemoryUse } from '../children.ts';
import type { Address } from '../control-plane-child.ts';
import { joinFakeHosts, signFakeHosts, trustDomain } from '../fake-hosts.ts';
import type { Goal, Row, Section } from '../result.ts';
import { round, summarize } from '../stats.ts';

/** How long a fleet may take to come to what is waited for, ms. More fails the run. */
const fleetMs = 120_000;
/** Sandboxes that are started at once, which the host that offers more CPUs than it has takes in. */
const manyAtOnce = 50;
/** Creates of a fleet that are under way at once. */
const creating = 50;

export interface SessionsOptions {
  readonly quick: boolean;
  readonly scratch: string;
  /** Of a Drover with real sandboxes. */
  readonly client: DroverClient;
  readonly image: string;
}

/** Spec 2 in figures: a dial until the user's command may begin, what a session costs, certificates, and a restart. */
export async function measureSessions({ quick, scratch, client, image }: SessionsOptions): Promise<Section> {
  const directory = await mkdtemp(join(scratch, 'sessions-'));
  try {
    const pems = await bareIdentity(directory);
    const rows: Row[] = [...(await dials(client, image, pems, quick)), ...(await signing(directory))];
    const fleet = await fleetOf(directory, quick ? 200 : 1_000, pems);
    rows.push(...fleet.rows);
    return {
      name: 'sessions',
      title: 'Identity and sessions',
      how:
        'Dial to agent-ready: real sandboxes (busybox), by the times of the control plane’s own events SessionConnecting, SessionConnected and ' +
        'InitCompleted; the dial begins while init starts, so the first figure holds init’s start, and the second is Hello, Register and the plan. ' +
        'Beside it node:http2 alone: a new connection over mutual TLS 1.3 to a server in another process, until its first answer. ' +
        'Memory and restart: a whole control plane on SQLite, real links of fake hosts, each sandbox with a certificate and a TLS session of its own, ' +
        'registered through its host.',
      rows,
      goals: fleet.goals,
      absent: [],
    };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** One certificate for both ends of what is compared with. */
async function bareIdentity(directory: string): Promise<Pems> {
  const ca = await openCertificateAuthority(join(directory, 'bare'), { trustDomain });
  const server = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
  return { caPem: ca.caPem, certificatePem: server.certificatePem, keyPem: server.keyPem };
}

async function dials(client: DroverClient, image: string, pems: Pems, quick: boolean): Promise<Row[]> {
  await using server = new Child('sessions/bare-child.ts');
  await using caller = new Child('sessions/bare-child.ts');
  const port = await server.ask<number>('listen', pems);
  const rows: Row[] = [];
  for (const [atOnce, rounds] of quick ? [[1, 3] as const] : [[1, 15] as const, [manyAtOnce, 2] as const]) {
    const whole: number[] = [];
    const session: number[] = [];
    for (let i = 0; i < rounds; i++) {
      for (const { ready, greeted } of await realDials(client, image, atOnce)) {
        whole.push(ready);
        session.push(ready - greeted);
      }
    }
    const bare = await caller.ask<number[]>('dial', { port, pems, count: Math.max(20, atOnce), atOnce });
    const bareP50 = summarize(bare).p50;
    const row = (what: string, values: readonly number[]): Row => {
      const summary = summarize(values);
      return { what, at: atOnce, unit: 'ms', summary, ratio: { to: 'bare http2', value: round(summary.p50 / bareP50) } };
    };
    rows.push(
      row('dial → agent-ready', whole),
      row('connected → agent-ready (Register, plan)', session),
      row('bare http2: dial → first answer', bare),
    );
  }
  return rows;
}

/** Milliseconds from SessionConnecting to SessionConnected and to InitCompleted. */
async function realDials(client: DroverClient, image: string, count: number): Promise<{ greeted: number; ready: number }[]> {
  const ids = await Promise.all(
    Array.from(
      { length: count },
      async () => (await client.sandboxes.create({ spec: { image, command: ['/bin/busybox', 'sleep', '1000'] } })).id,
    ),
  );
  const took = await Promise.all(
    ids.map(async (id) => {
      const times = new Map<string, number>();
      for await (const event of client.events.watch({
        fromStart: true,
        follow: true,
        subject: id,
        kinds: ['session', 'init'],
        signal: AbortSignal.timeout(fleetMs),
      })) {
        if (event.type === 'InitFailed' || event.type === 'SessionFailed') throw new Error(`${event.type}: ${event.dataJson}`);
        if (!times.has(event.type) && event.time !== undefined) times.set(event.type, timestampMs(event.time));
        if (event.type === 'InitCompleted') break;
      }
      const at = (type: string): number => times.get(type) ?? Number.NaN;
      const begun = at('SessionConnecting');
      return { greeted: at('SessionConnected') - begun, ready: at('InitCompleted') - begun };
    }),
  );
  await Promise.all(ids.map(async (id) => await client.sandboxes.remove(id)));
  await Promise.all(ids.map(async (id) => await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: fleetMs })));
  return took;
}

/** Certificates for sandboxes, from a request that is parsed and checked each time, beside what OpenSSL signs with the same kind of key. */
async function signing(directory: string): Promise<Row[]> {
  const ca = await openCertificateAuthority(join(directory, 'signing'), { trustDomain });
  const { csrDer } = createKeyAndRequest();
  const seconds = 3;
  const end = performance.now() + seconds * 1000;
  let signed = 0;
  while (performance.now() < end) {
    await ca.signSandbox(newSandboxId(), 'lab.bench', csrDer);
    signed++;
  }
  const report = execFileSync('openssl', ['speed', '-mr', '-seconds', String(seconds), 'ecdsap256'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  // `+F4:index:bits:signs per s:verifies per s`, or seconds per operation in older ones.
  const figure = Number(/^\+F\d+:\d+:256:([\d.]+):/m.exec(String(report))?.[1]);
  const openssl = figure < 1 ? 1 / figure : figure;
  const ours = signed / seconds;
  return [
    {
      what: 'certificates signed, one after another',
      unit: '/s',
      value: round(ours),
    },
    {
      what: 'openssl speed ecdsap256, bare signatures',
      unit: '/s',
      value: round(openssl),
      ratio: { to: 'certificates signed', value: round(openssl / ours) },
    },
  ];
}

async function fleetOf(directory: string, count: number, pems: Pems): Promise<{ readonly rows: Row[]; readonly goals: Goal[] }> {
  const hosts = Math.ceil(count / 50);
  const identities = await signFakeHosts(directory, hosts);
  await joinFakeHosts(
    directory,
    identities.map(({ hostId }) => hostId),
  );
  await using held = new AsyncDisposableStack();
  const fleet = held.use(new Child('sessions/fleet-child.ts'));
  const first = held.use(new Child('control-plane-child.ts', [directory]));
  const address = await first.ask<Address>('start');
  await fleet.ask('connect', { identities, address: address.link });
  await until('every host is connected', async () => (await fleet.ask<number>('connected')) === hosts);
  const client = await connectDrover(address);
  held.defer(() => client.close());
  const before = await first.ask<MemoryUse>('memory');
  const began = performance.now();
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next++ < count)
      await client.sandboxes.create({
        spec: { image: 'host', command: ['sleep', '1000'], resources: { cpuMillis: 1, memoryBytes: 16n * 2n ** 20n } },
      });
  };
  await Promise.all(Array.from({ length: creating }, lane));
  await until('every session stands', async () => (await standing(client, 0)) === count);
  const firstSeconds = (performance.now() - began) / 1000;
  // What the registrations took is given back.
  await delay(3_000);
  const after = await first.ask<MemoryUse>('memory');
  const ours = (after.rssBytes - before.rssBytes) / count / 1000;

  const bare = await bareMemory(count, pems);
  const killed = Date.now();
  await first.kill();
  const second = held.use(new Child('control-plane-child.ts', [directory]));
  await second.ask('start');
  let half = Number.NaN;
  await until('every session stands again', async () => {
    const now = await standing(client, killed).catch(() => 0);
    if (Number.isNaN(half) && now >= count / 2) half = (Date.now() - killed) / 1000;
    return now === count;
  });
  const backSeconds = (Date.now() - killed) / 1000;
  const rows: Row[] = [
    { what: 'create → registered and ready, all', at: count, unit: 's', value: round(firstSeconds) },
    {
      what: 'control plane, resident, a session',
      at: count,
      unit: 'kB',
      value: round(ours),
      ratio: { to: 'bare http2', value: round(ours / bare) },
    },
    { what: 'bare http2, resident, a connection with one stream', at: count, unit: 'kB', value: round(bare) },
    { what: 'half of the sessions again after kill -9', at: count, unit: 's', value: round(half) },
    { what: 'all sessions again after kill -9', at: count, unit: 's', value: round(backSeconds) },
  ];
  return { rows, goals: [] };
}

/** Sandboxes whose session stands, since a moment, and whose plan is done. */
async function standing(client: DroverClient, since: number): Promise<number> {
  const { sandboxes } = await client.worldview.snapshot();
  return sandboxes.filter(
    ({ session, init }) =>
      session?.state === 'connected' && session.since !== undefined && timestampMs(session.since) > since && init?.state === 'completed',
  ).length;
}

async function bareMemory(count: number, pems: Pems): Promise<number> {
  await using server = new Child('sessions/bare-child.ts');
  await using caller = new Child('sessions/bare-child.ts');
  const port = await server.ask<number>('listen', pems);
  // The first ones load what all share.
  await caller.ask('dial', { port, pems, count: 10, atOnce: 10 });
  const before = await caller.ask<MemoryUse>('memory');
  await caller.ask('dial', { port, pems, count, atOnce: 50 });
  return ((await caller.ask<MemoryUse>('memory')).rssBytes - before.rssBytes) / count / 1000;
}

async function until(what: string, condition: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + fleetMs;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`in ${fleetMs / 1000} s this did not come true: ${what}`);
    await delay(100);
  }
}
