import { Code, ConnectError } from '@connectrpc/connect';
import { FakeClock } from '@drover/foundation';
import { expect, test } from 'vitest';
import { Calls } from './calls.ts';
import { retryCapMs, watchReconnectMs } from './limits.ts';

const server = 'https://drover.example';
const broken = (): ConnectError => new ConnectError('the connection was reset', Code.Unavailable);

test('a wait outlives any number of breaks, and knows how long it has taken in all', async () => {
  const clock = new FakeClock();
  const passed: number[] = [];
  const waiting = new Calls(server, clock).wait(async (passedMs) => {
    passed.push(passedMs);
    if (passed.length > 20) return 'stopped';
    await clock.sleep(3_600_000);
    throw broken();
  });
  await clock.advance(21 * (3_600_000 + retryCapMs));
  expect(await waiting).toBe('stopped');
  expect(passed).toHaveLength(21);
  expect(passed[20]).toBeGreaterThanOrEqual(20 * 3_600_000);
});

test('a server that does not come back ends a wait, in bounded time', async () => {
  const clock = new FakeClock();
  let tries = 0;
  const waiting = new Calls(server, clock).wait(() => {
    tries++;
    return Promise.reject(broken());
  });
  const outcome = waiting.catch((error: unknown) => ({ error, at: clock.now() }));
  await clock.advance(watchReconnectMs + 2 * retryCapMs);
  expect(await outcome).toMatchObject({ error: { code: 'control-plane-unreachable' } });
  expect(tries).toBeGreaterThan(5);
});

test('what the server itself says ends a wait at once', async () => {
  const refusal = new ConnectError('no', Code.PermissionDenied);
  await expect(new Calls(server, new FakeClock()).wait(() => Promise.reject(refusal))).rejects.toMatchObject({ code: 'permission-denied' });
});
