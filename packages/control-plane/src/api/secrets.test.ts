import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { sandbox } from '@drover/protocol';
import type { Secret } from '@drover/sdk';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import { startTestApi, type TestApi } from './testing/server.ts';

const canary = 'a-canary-in-the-mine';
const secrets: readonly Secret[] = [
  { name: 'TOKEN', value: canary },
  { name: 'KEY', value: canary, target: 'file' },
];

async function failure(promise: Promise<unknown>): Promise<string> {
  return await promise.then(
    () => 'nothing failed',
    (error: unknown) => JSON.stringify(error, Object.getOwnPropertyNames(error)),
  );
}

/** Everything that the API keeps. */
async function stored(api: TestApi): Promise<Buffer> {
  const entries = await readdir(api.directory, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return Buffer.concat(await Promise.all(files.map(async (path) => await readFile(path))));
}

describe('R-19: the secrets of a sandbox', () => {
  test('are stored so that the key opens them, and nothing else shows more than their names', async () => {
    let log = '';
    const logger = pino({ level: 'trace' }, { write: (line) => void (log += line) });
    await using api = await startTestApi({ logger });
    const made = await api.client.sandboxes.create({ name: 'box', spec: { image: 'host' }, secrets, idempotencyKey: 'key' });
    const { ENVIRONMENT, FILE } = sandbox.SecretTarget;
    expect(made.spec?.secrets).toMatchObject([
      { name: 'TOKEN', target: ENVIRONMENT },
      { name: 'KEY', target: FILE },
    ]);
    const answers = [made, await api.client.sandboxes.get('box'), ...(await api.client.sandboxes.list())];
    const events = await api.store.events.after(0, 100);
    const shown = JSON.stringify([...answers, ...events], (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value));
    const base64 = Buffer.from(canary).toString('base64');
    for (const text of [shown, log]) expect(text.includes(canary) || text.includes(base64)).toBe(false);
    const kept = await stored(api);
    expect(kept.includes('box')).toBe(true);
    expect(kept.includes(canary) || kept.includes(base64)).toBe(false);
    expect((await api.store.sandboxes.secrets(made.id as never)).map(({ name }) => name)).toEqual(['KEY', 'TOKEN']);
  });

  test('L-20: the call repeated with its key gives the first answer, with another secret it is another request', async () => {
    await using api = await startTestApi();
    const options = { spec: { image: 'host' }, secrets, idempotencyKey: 'key' };
    const first = await api.client.sandboxes.create(options);
    expect(await api.client.sandboxes.create(options)).toEqual(first);
    const other = await failure(
      api.client.sandboxes.create({ ...options, secrets: [{ name: 'TOKEN', value: 'other' }, ...secrets.slice(1)] }),
    );
    expect(other).toContain('idempotency-key-reused');
  });

  test('that are refused are not repeated in the error', async () => {
    await using api = await startTestApi();
    const refused = await failure(api.client.sandboxes.create({ spec: { image: 'host' }, secrets: [{ name: 'A-B', value: canary }] }));
    expect(refused).toContain('invalid-argument');
    expect(refused).not.toContain(canary);
  });

  test('are not taken without values', async () => {
    await using api = await startTestApi();
    const spec = create(sandbox.SandboxSpecSchema, { image: 'host', secrets: [{ name: 'A', target: sandbox.SecretTarget.FILE }] });
    expect(await failure(api.client.sandboxes.create({ spec }))).toContain('invalid-argument');
  });
});
