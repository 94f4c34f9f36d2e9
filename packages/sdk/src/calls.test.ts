import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError, FakeClock } from '@drover/foundation';
import { describe, expect, test } from 'vitest';
import { Calls } from './calls.ts';
import { callWaitMs, connectWaitMs, hostWaitMs, retryCapMs, streamWaitMs } from './limits.ts';
import { Retry } from './retry.ts';

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
  await clock.advance(streamWaitMs + 2 * retryCapMs);
  expect(await outcome).toMatchObject({ error: { code: 'control-plane-unreachable' } });
  expect(tries).toBeGreaterThan(5);
});

test('an error of the server ends a wait immediately', async () => {
  const refusal = new ConnectError('no', Code.PermissionDenied);
  await expect(new Calls(server, new FakeClock()).wait(() => Promise.reject(refusal))).rejects.toMatchObject({ code: 'permission-denied' });
});

const refused = (): DroverError =>
  new DroverError('control-plane-unreachable', 'nothing listens there', { cause: Object.assign(new Error('x'), { code: 'ECONNREFUSED' }) });

/** Calls until it fails; how long that took, and the error. */
async function failing(
  failures: readonly (() => Error)[],
  how: 'ask' | 'mutate',
): Promise<{ readonly error: DroverError; readonly ms: number; readonly keys: Set<string> }> {
  const clock = new FakeClock();
  const calls = new Calls(server, clock);
  const keys = new Set<string>();
  let tries = 0;
  const call = (key = ''): Promise<never> => {
    keys.add(key);
    return Promise.reject((failures[Math.min(tries++, failures.length - 1)] ?? broken)());
  };
  const outcome = (how === 'ask' ? calls.ask(() => call()) : calls.mutate(call, undefined)).then(
    () => undefined,
    (error: unknown) => ({ error: error as DroverError, ms: clock.now(), keys }),
  );
  await clock.advance(callWaitMs * 2);
  const failed = await outcome;
  if (failed === undefined) throw new Error('it succeeded');
  return failed;
}

describe('what a call waits for', () => {
  test('where nothing has listened from the first try on: the start of a control plane', async () => {
    const { error, ms } = await failing([refused], 'mutate');
    expect(ms).toBeLessThanOrEqual(connectWaitMs);
    expect(error.message).toMatch(/^nothing listens there \(waited \ds for the control plane\)$/);
  });

  test('once a connection stood: the restart of the control plane, and a change that may have arrived says so', async () => {
    const { error, ms, keys } = await failing([broken, refused], 'mutate');
    expect(ms).toBeGreaterThan(callWaitMs - 2 * retryCapMs);
    expect(ms).toBeLessThanOrEqual(callWaitMs);
    expect(error.message).toMatch(/waited \d+s for the control plane\); whether the change was made is not known$/);
    expect(error.hint).toContain('drover sandbox ls');
    expect(keys.size).toBe(1);
  });

  test('a lost response to a call without side effects leaves no doubt', async () => {
    expect((await failing([broken], 'ask')).error.message).not.toContain('not known');
  });

  test('L-15: a host that is down is waited for by attached processes alone', async () => {
    const clock = new FakeClock();
    const down = new DroverError('host-unavailable', 'host near is down');
    await expect(new Retry(clock, { controlPlaneMs: 1_000 }).pause(down, undefined)).rejects.toBe(down);
    const attached = new Retry(clock, { controlPlaneMs: 1_000, hostMs: hostWaitMs });
    const outcome = (async () => {
      for (;;) await attached.pause(down, undefined);
    })().catch((error: unknown) => ({ error, ms: clock.now() }));
    await clock.advance(hostWaitMs + retryCapMs);
    expect(await outcome).toMatchObject({
      error: { message: expect.stringMatching(/^host near is down \(waited 1[45]m for its host\)$/) as string },
    });
  });

  test('a control plane that restarts while a host is down has its own budget', async () => {
    const clock = new FakeClock();
    const down = new DroverError('host-unavailable', 'host near is down');
    const attached = new Retry(clock, { controlPlaneMs: streamWaitMs, hostMs: hostWaitMs });
    let error: DroverError = down;
    const outcome = (async () => {
      for (;;) await attached.pause(error, undefined);
    })().catch((thrown: unknown) => ({ error: thrown, ms: clock.now() }));
    // The host is down for longer than a control plane may be away.
    await clock.advance(streamWaitMs * 2);
    error = new DroverError('control-plane-unreachable', 'the connection broke');
    await clock.advance(streamWaitMs / 2);
    error = down;
    await clock.advance(hostWaitMs - streamWaitMs * 2.5 + retryCapMs);
    // The wait for the host went on meanwhile.
    expect(await outcome).toMatchObject({ error: { message: expect.stringMatching(/^host near is down \(waited 1[45]m/) as string } });
  });
});
