import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { connectDrover, type DroverClient } from '@drover/sdk';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { TestDrover } from '../harness/index.ts';

/** Issue "Faults found in use and under attack", heading 6: execs, forwards and terminals of one sandbox. */

let drover: TestDrover;
let client: DroverClient;

beforeAll(async () => {
  drover = await TestDrover.start(['--pool', '10.234.64.0/18']);
  client = await connectDrover(await drover.connection());
  await drover.begin('web', ['sleep', '1d']);
});

afterAll(async () => {
  client?.close();
  await drover?.[Symbol.asyncDispose]();
});

test('a paste into a terminal whose program does not read holds up nothing else, and arrives whole when it reads', async () => {
  const paste = Buffer.from(randomBytes(200_000).toString('hex'));
  const script = `stty raw -echo; echo ready; until [ -e /tmp/go ]; do sleep 0.1; done; head -c ${paste.length} | sha256sum`;
  const handle = client.sandboxes.exec('web', { argv: ['sh', '-c', script], terminal: true, stdin: true });
  handle.stderr.resume();
  const [first] = (await once(handle.stdout, 'data')) as [Buffer];
  expect(first.toString()).toContain('ready');
  handle.stdin.write(paste);
  expect(await drover.exec('web', ['true'])).toMatchObject({ code: 0 });
  await drover.exec('web', ['touch', '/tmp/go']);
  expect(await text(handle.stdout)).toContain(createHash('sha256').update(paste).digest('hex'));
  expect(await handle.exit).toMatchObject({ code: 0 });
});
