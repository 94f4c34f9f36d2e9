import { systemClock, type Clock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { expect, test } from 'vitest';
import { SupervisedProcess } from './index.ts';

test('S-6: a timer that fires before its time delays a restart, it does not lose it', async () => {
  let early = 0;
  // Timers fire 5 ms early, as Node's may by a fraction of one.
  const clock: Clock = {
    now: () => systemClock.now(),
    sleep: async (ms, signal) => {
      if (ms > 5) early++;
      await systemClock.sleep(ms > 5 ? ms - 5 : ms, signal);
    },
  };
  const child = new SupervisedProcess({ name: 'short', argv: ['/bin/sh', '-c', 'exit 1'], env: {} }, { logger: silentLogger, clock });
  child.start();
  await child.waitFor('restarting', AbortSignal.timeout(10_000));
  while (child.status().restarts === 0) await child.waitFor(['starting', 'running'], AbortSignal.timeout(10_000));
  expect(early).toBeGreaterThan(0);
  expect(child.status().restarts).toBeGreaterThan(0);
  await child.stop();
});
