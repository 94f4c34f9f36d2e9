import { FakeClock } from '@drover/foundation';
import { expect, test, vi } from 'vitest';
import { standbyRestMs } from '../limits.ts';
import { KeyReserve } from './key-reserve.ts';

test('I-6: every start has a key of its own, from the reserve or made for it', async () => {
  const life = new AbortController();
  const clock = new FakeClock();
  const keys = new KeyReserve(clock, life.signal);
  const first = await keys.take();
  await clock.advance(standbyRestMs);
  const taken = [first];
  await vi.waitFor(async () => {
    taken.push(await keys.take());
    expect(taken.length).toBeGreaterThan(40);
  });
  expect(new Set(taken.map(({ keyPem }) => keyPem)).size).toBe(taken.length);
  life.abort();
  expect((await keys.take()).keyPem).toMatch(/PRIVATE KEY/);
});
