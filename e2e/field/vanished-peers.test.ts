import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { initPort } from '@drover/init';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, HostNetwork, isAlive, launcher, TestDrover } from '../harness/index.ts';

/** The network of a client. After a cut its packets vanish. */
let network: HostNetwork;
let drover: TestDrover;
beforeAll(async () => {
  network = await HostNetwork.create('10.238.191');
  drover = await TestDrover.start(['--pool', '10.238.192.0/18', '--listen', `${network.controlPlaneAddress}:0`]);
  await drover.begin('prepared', ['sleep', '1d'], { setup: { git: { config: { 'user.name': 'A Robot' }, clones: [] } } });
  // From now on a repeated step of the setup would never end.
  await drover.exec('prepared', ['sh', '-c', 'printf "#!/bin/sh\\nsleep 1d\\n" > /usr/local/bin/git; chmod +x /usr/local/bin/git']);
  const pid = await drover.pidOf('serve');
  process.kill(pid, 'SIGKILL');
  await eventually('the next control plane responds', async () => !isAlive(pid) && (await drover.answers()));
  await drover.saw(
    (await drover.sandbox<Seen>('prepared')).id,
    ['session'],
    (types) => types.filter((type) => type === 'SessionConnected').length === 2,
  );
}, 120_000);
afterAll(async () => {
  await drover?.[Symbol.asyncDispose]();
  await network?.[Symbol.asyncDispose]();
});

interface Seen {
  readonly id: string;
  readonly state: string;
  readonly startCount: number;
  readonly session: { readonly state: string };
  readonly identity: { readonly verdict: string; readonly reason: string };
}

/** Blocks all packets to a sandbox's init and resets its clients. Init does not notice. Returns a function that unblocks them. */
async function cutInit(id: string): Promise<() => Promise<void>> {
  const pid = (await readFile(join(drover.data, 'host', 'sandboxes', id, 'init.pid'), 'utf8')).trim();
  const nft = async (...rules: string[]): Promise<void> =>
    void (await execa('nsenter', [`--net=/proc/${pid}/ns/net`, '--', 'nft', ...rules]));
  await nft('add table inet lost; add chain inet lost in { type filter hook input priority -400; }');
  await nft(`add rule inet lost in tcp dport ${initPort} reject with tcp reset`);
  return async () => await nft('delete table inet lost');
}

// The dialer gives up 60 s after a session breaks, so these tests run concurrently.

test.concurrent('9.2: a lost session is shown as lost, and is redialled while the sandbox runs', {
  timeout: 330_000,
}, async () => {
  const { id } = await drover.begin<Seen>('web', ['sleep', '1d']);
  const restore = await cutInit(id);
  let shown: unknown;
  const lost = await eventually(
    'the session is lost',
    async () => {
      const seen = await drover.sandbox<Seen>('web');
      shown = { session: seen.session, identity: seen.identity };
      return seen.identity.reason === 'session-lost' ? seen : undefined;
    },
    180_000,
    () => shown,
  );
  expect(lost).toMatchObject({ state: 'running', startCount: 1, identity: { verdict: 'unknown' } });
  expect((await drover.run(['sandbox', 'ls'])).stdout).toMatch(/web.*session lost/);
  expect((await drover.run(['events', '--kind', 'session', '--subject', 'web'])).stdout).toMatch(/SessionFailed/);

  await restore();
  // No command makes a call: the dialer redials automatically.
  await eventually('the session is trusted again', async () => (await drover.sandbox<Seen>('web')).identity.verdict === 'trusted', 150_000);
  expect((await drover.exec('web', ['echo', 'here'])).stdout).toBe('here\n');
  expect(await drover.sandbox<Seen>('web')).toMatchObject({ state: 'running', startCount: 1 });
});

test.concurrent('9.3: a prepared workload keeps running while its sessions are interrupted and then lost', {
  timeout: 200_000,
}, async () => {
  await cutInit((await drover.sandbox<Seen>('prepared')).id);
  const seen = await eventually(
    'the session is lost',
    async () => {
      const now = await drover.sandbox<Seen>('prepared');
      return now.state !== 'running' || now.identity.reason === 'session-lost' ? now : undefined;
    },
    180_000,
  );
  expect(seen).toMatchObject({ state: 'running', startCount: 1 });
});

test.concurrent('9.6: API clients that vanish without a reset do not keep a sandbox from being idle', { timeout: 200_000 }, async () => {
  await drover.begin<Seen>('unused', ['sh', '-c', 'echo begun; exec sleep 1d'], { idleStopSeconds: 15n });
  const { server } = await drover.connection();
  await network.open([Number(new URL(server).port)]);
  const clients = [
    ['attach', '--no-stdin', 'unused'],
    ['exec', 'unused', '--', 'sh', '-c', 'echo begun; exec sleep 1d'],
  ].map((args) => {
    const [file, ...rest] = network.command(launcher, ...args);
    return execa(file, rest, { env: drover.environment, reject: false, stdin: 'ignore' });
  });
  try {
    await Promise.all(clients.map(async ({ stdout }) => await once(stdout, 'data')));
    await network.cut();
    await eventually(
      'the sandbox is stopped, as it is idle',
      async () => (await drover.sandbox<Seen>('unused')).state === 'stopped',
      120_000,
    );
    expect(await drover.sandbox('unused')).toMatchObject({ reason: 'idle' });
  } finally {
    for (const client of clients) client.kill('SIGKILL');
  }
});
