import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { openCertificateAuthority } from '@drover/pki';
import { Child } from '../children.ts';
import { joinFakeHosts, signFakeHosts, trustDomain } from '../fake-hosts.ts';
import type { Load } from '../load.ts';
import type { Row, Section } from '../result.ts';
import { round, summarize } from '../stats.ts';
import { NatsServer } from './nats.ts';

const shapes = [
  { hosts: 1, inFlight: 128 },
  { hosts: 100, inFlight: 400 },
] as const;

/** Commands a second through the hub, against the same frames over bare grpc-js, and NATS from outside. */
export async function measureHub(quick: boolean, scratch: string): Promise<Section> {
  const rounds = quick ? 3 : 6;
  const ms = quick ? 500 : 1_000;
  const directory = await mkdtemp(join(scratch, 'hub-'));
  const absent: string[] = [];
  const rows: Row[] = [];
  try {
    const identities = await signFakeHosts(directory, 100);
    await joinFakeHosts(
      directory,
      identities.map(({ hostId }) => hostId),
    );
    const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain });
    const server = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
    await using nats = await NatsServer.start(directory);
    if (nats === undefined) absent.push('NATS: nats-server is not installed (apt-get install nats-server)');
    for (const { hosts, inFlight } of shapes) {
      const own = identities.slice(0, hosts);
      await using hub = new Child('hub/hub-child.ts', [directory]);
      await using hubHosts = new Child('hub/hosts-child.ts');
      await using bare = new Child('hub/bare-child.ts');
      await using bareHosts = new Child('hub/hosts-child.ts');
      await hubHosts.ask('connect', { identities: own, address: `127.0.0.1:${await hub.ask<number>('start')}` });
      const port = await bare.ask<number>('start', { ...server, caPem: ca.caPem });
      await bareHosts.ask('bare', { identities: own, port });
      await until(async () => (await hub.ask<number>('connected')) === hosts && (await bare.ask<number>('connected')) === hosts);
      await using requester = new Child('hub/nats-child.ts');
      await using responder = new Child('hub/nats-child.ts');
      if (nats !== undefined) {
        await responder.ask('respond', { port: nats.port, hosts });
        await requester.ask('request', nats.port);
      }
      const ways = [
        { what: 'commands through the hub', child: hub },
        { what: 'bare grpc-js, the same frames', child: bare },
        ...(nats === undefined ? [] : [{ what: 'NATS request/reply, no TLS', child: requester }]),
      ];
      const load = (duration: number): Load => ({ hosts, inFlight, ms: duration });
      for (const { child } of ways) await child.ask('run', load(300));
      const rates = ways.map(() => [] as number[]);
      for (let i = 0; i < rounds; i++) {
        for (const [index, { child }] of ways.entries()) rates[index]?.push(await child.ask<number>('run', load(ms)));
      }
      const base = summarize(rates[1] ?? []).p50;
      for (const [index, { what }] of ways.entries()) {
        const summary = summarize(rates[index] ?? []);
        rows.push({
          what: `${what}, ${hosts === 1 ? '1 host' : `${hosts} hosts`}, ${inFlight} in flight`,
          unit: '/s',
          summary,
          ratio: { to: 'bare grpc-js', value: round(summary.p50 / base) },
        });
      }
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
  return {
    name: 'hub',
    title: 'Commands a second through the hub',
    how:
      'The real link server with its store and real agent links, in two processes; a `list` command to a host without sandboxes. Beside it the ' +
      'same frames over bare grpc-js with mutual TLS, and NATS request/reply without TLS and with a server in between. n rounds in turn; ' +
      'the percentiles are of the rounds’ rates.',
    rows,
    goals: [],
    absent,
  };
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + 30_000;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error('the fake hosts do not connect');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
