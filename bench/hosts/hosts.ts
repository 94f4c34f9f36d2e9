import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { openCertificateAuthority } from '@drover/pki';
import { Child, type MemoryUse } from '../children.ts';
import type { Address } from '../control-plane-child.ts';
import { joinFakeHosts, signFakeHosts, trustDomain, type FakeIdentity } from '../fake-hosts.ts';
import type { Goal, Row, Section } from '../result.ts';
import { round } from '../stats.ts';

/** Processes that the fake hosts are spread over. */
const processes = 2;
/** How long all may take to come, ms. More fails the run. */
const connectMs = 120_000;

/** Memory per connected host, and the return of all of them after the server was killed. */
export async function measureHosts(quick: boolean, scratch: string): Promise<Section> {
  const rows: Row[] = [];
  const goals: Goal[] = [];
  for (const count of quick ? [500] : [1_000, 5_000]) {
    const directory = await mkdtemp(join(scratch, 'hosts-'));
    try {
      const identities = await signFakeHosts(directory, count);
      await joinFakeHosts(
        directory,
        identities.map(({ hostId }) => hostId),
      );
      const ours = await connected(directory, identities);
      const bare = await bareStreams(directory, identities);
      for (const [what, use] of [
        ['control plane, resident', ours.rss],
        ['control plane, heap', ours.heap],
        ['bare grpc-js, resident', bare.rss],
        ['bare grpc-js, heap', bare.heap],
      ] as const) {
        const to = what.endsWith('heap') ? bare.heap : bare.rss;
        rows.push({
          what: `${what}, a connected host`,
          at: count,
          unit: 'kB',
          value: round(use),
          ratio: { to: 'bare grpc-js', value: round(use / to) },
        });
      }
      rows.push(
        { what: 'all ready, first time', at: count, unit: 's', value: ours.firstSeconds },
        { what: 'half ready after kill -9 and restart', at: count, unit: 's', value: ours.halfSeconds },
        { what: 'all ready after kill -9 and restart', at: count, unit: 's', value: ours.backSeconds },
        { what: 'of that, until the new server listens', at: count, unit: 's', value: ours.startSeconds },
        { what: 'hosts that gave up or are missing', at: count, unit: '', value: ours.failed },
      );
      goals.push({
        what: `memory on the server for each of ${count} connected hosts (resident)`,
        goal: '≤ 100 kB',
        figure: `${round(ours.rss)} kB`,
        met: ours.rss <= 100,
      });
      if (count === 5_000) {
        goals.push({
          what: '5,000 hosts ready after the server was killed and started again',
          goal: '30 s, no failure',
          figure: `${ours.backSeconds} s, ${ours.failed} missing`,
          met: ours.backSeconds <= 30 && ours.failed === 0,
        });
      }
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }
  return {
    name: 'hosts',
    title: 'Connected hosts',
    how:
      'A whole control plane on SQLite in one process, real agent links with sandboxes in memory in two others; the growth of the server’s memory ' +
      'after gc, by the number of hosts. Then SIGKILL, the server started again at once on the same data and ports, until every host has been welcomed. ' +
      'Certificates are signed before. Bare grpc-js: one idle stream over mutual TLS each. Both servers run with one arena of malloc and a young ' +
      'generation of 8 MB, as the launcher starts Drover’s own.',
    rows,
    goals,
    absent: [],
  };
}

interface PerHost {
  readonly rss: number;
  readonly heap: number;
}

async function connected(directory: string, identities: readonly FakeIdentity[]) {
  await using fleet = new AsyncDisposableStack();
  const hosts = Array.from({ length: processes }, () => fleet.use(new Child('hub/hosts-child.ts')));
  const first = new Child('control-plane-child.ts', [directory]);
  fleet.use(first);
  const { link } = await first.ask<Address>('start');
  const before = await first.ask<MemoryUse>('memory');
  const began = performance.now();
  await Promise.all(hosts.map(async (child, index) => await child.ask('connect', { identities: part(identities, index), address: link })));
  const firstSeconds = (await allReady(hosts, identities.length, began)).all;
  // What the registrations took is given back.
  await delay(3_000);
  const use = perHost(before, await first.ask<MemoryUse>('memory'), identities.length);
  const killed = performance.now();
  await first.kill();
  const second = fleet.use(new Child('control-plane-child.ts', [directory]));
  await second.ask('start');
  const startSeconds = seconds(killed);
  const back = await allReady(hosts, identities.length, killed);
  return { ...use, firstSeconds, startSeconds, halfSeconds: back.half, backSeconds: back.all, failed: back.missing };
}

async function bareStreams(directory: string, identities: readonly FakeIdentity[]): Promise<PerHost> {
  const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain });
  const server = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
  await using fleet = new AsyncDisposableStack();
  const bare = fleet.use(new Child('hub/bare-child.ts'));
  const hosts = Array.from({ length: processes }, () => fleet.use(new Child('hub/hosts-child.ts')));
  const port = await bare.ask<number>('start', { ...server, caPem: ca.caPem });
  const before = await bare.ask<MemoryUse>('memory');
  // In parts: grpc-js has no ramp, and drops connections that wait for long.
  for (let at = 0; at < identities.length; at += 500) {
    const some = identities.slice(at, at + 500);
    await Promise.all(hosts.map(async (child, index) => await child.ask('bare', { identities: part(some, index), port })));
    const end = Date.now() + connectMs;
    while ((await bare.ask<number>('connected')) < at + some.length) {
      if (Date.now() > end) throw new Error('the bare streams do not come');
      await delay(50);
    }
  }
  await delay(3_000);
  return perHost(before, await bare.ask<MemoryUse>('memory'), identities.length);
}

function perHost(before: MemoryUse, after: MemoryUse, count: number): PerHost {
  return { rss: (after.rssBytes - before.rssBytes) / count / 1000, heap: (after.heapBytes - before.heapBytes) / count / 1000 };
}

async function allReady(hosts: readonly Child[], count: number, began: number): Promise<{ half: number; all: number; missing: number }> {
  let half: number | undefined;
  for (;;) {
    const counts = await Promise.all(hosts.map(async (child) => await child.ask<number>('connected')));
    const ready = counts.reduce((a, b) => a + b, 0);
    if (ready >= count / 2) half ??= seconds(began);
    if (ready === count || performance.now() - began > connectMs)
      return { half: half ?? Number.NaN, all: seconds(began), missing: count - ready };
    await delay(100);
  }
}

function part<T>(items: readonly T[], index: number): T[] {
  return items.filter((_, i) => i % processes === index);
}

function seconds(since: number): number {
  return round((performance.now() - since) / 1000);
}
