import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { initPort } from '@drover/init';
import { execa } from 'execa';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, TestDrover } from '../harness/index.ts';

let drover: TestDrover;
beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.238.192.0/18']);
});
afterAll(async () => await drover?.[Symbol.asyncDispose]());

interface Seen {
  readonly id: string;
  readonly state: string;
  readonly startCount: number;
  readonly session: { readonly state: string };
  readonly identity: { readonly verdict: string; readonly reason: string };
}

test('9.2: a session that is lost is shown as lost, and is redialled for as long as the sandbox runs', { timeout: 330_000 }, async () => {
  const { id } = await drover.begin<Seen>('web', ['sleep', '1d']);
  const pid = (await readFile(join(drover.data, 'host', 'sandboxes', id, 'init.pid'), 'utf8')).trim();
  const nft = async (...rules: string[]): Promise<void> =>
    void (await execa('nsenter', [`--net=/proc/${pid}/ns/net`, '--', 'nft', ...rules]));
  // Nothing reaches init any more, and it knows nothing of it. The dial is given up 60 s after the break.
  await nft('add table inet lost; add chain inet lost in { type filter hook input priority -400; }');
  await nft(`add rule inet lost in tcp dport ${initPort} reject with tcp reset`);

  const lost = await eventually(
    'the session is lost',
    async () => {
      const seen = await drover.sandbox<Seen>('web');
      return seen.identity.reason === 'session-lost' ? seen : undefined;
    },
    180_000,
  );
  expect(lost).toMatchObject({ state: 'running', startCount: 1, identity: { verdict: 'unknown' } });
  expect((await drover.run(['sandbox', 'ls'])).stdout).toMatch(/web.*session lost/);
  expect((await drover.run(['events', '--kind', 'session', '--subject', 'web'])).stdout).toMatch(/SessionFailed/);

  await nft('delete table inet lost');
  // No command calls: the dialer finds it by itself.
  await eventually('the session stands again', async () => (await drover.sandbox<Seen>('web')).identity.verdict === 'trusted', 150_000);
  expect((await drover.exec('web', ['echo', 'here'])).stdout).toBe('here\n');
  expect(await drover.sandbox<Seen>('web')).toMatchObject({ state: 'running', startCount: 1 });
});
