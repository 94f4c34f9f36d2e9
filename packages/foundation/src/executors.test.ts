import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { KeyedExecutor, SerialExecutor } from './index.ts';

describe('a serial executor', () => {
  test('runs one at a time, in order, also after a failure', async () => {
    const executor = new SerialExecutor();
    const log: string[] = [];
    let running = 0;
    const task =
      (name: string, fail = false) =>
      async (): Promise<string> => {
        expect(++running).toBe(1);
        await new Promise((resolve) => setImmediate(resolve));
        log.push(name);
        running--;
        if (fail) throw new Error(name);
        return name;
      };
    const outcomes = await Promise.allSettled([executor.run(task('a')), executor.run(task('b', true)), executor.run(task('c'))]);
    expect(outcomes.map((o) => o.status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
    expect(log).toEqual(['a', 'b', 'c']);
  });

  test('refuses more than its limit', async () => {
    const executor = new SerialExecutor(1);
    const first = executor.run(async () => await Promise.resolve(1));
    await expect(executor.run(() => 2)).rejects.toMatchObject({ code: 'queue-full' });
    expect(await first).toBe(1);
    expect(await executor.run(() => 3)).toBe(3);
  });
});

describe('a keyed executor', () => {
  test('runs the tasks of a key in order and those of different keys concurrently, whatever their order and outcome', async () => {
    const task = fc.record({ key: fc.constantFrom('a', 'b', 'c'), fails: fc.boolean(), turns: fc.integer({ min: 0, max: 3 }) });
    await fc.assert(
      fc.asyncProperty(fc.array(task, { maxLength: 12 }), async (tasks) => {
        const executor = new KeyedExecutor<string>();
        const running = new Set<string>();
        const ran = new Map<string, number[]>();
        const outcomes = await Promise.allSettled(
          tasks.map(
            async ({ key, fails, turns }, index) =>
              await executor.run(key, async () => {
                expect(running.has(key)).toBe(false);
                running.add(key);
                for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
                running.delete(key);
                ran.set(key, [...(ran.get(key) ?? []), index]);
                if (fails) throw new Error(key);
              }),
          ),
        );
        expect(outcomes.map(({ status }) => status === 'rejected')).toEqual(tasks.map(({ fails }) => fails));
        for (const indexes of ran.values()) expect(indexes).toEqual(indexes.toSorted((a, b) => a - b));
        for (const { key } of tasks) expect(executor.waiting(key)).toBe(0);
      }),
    );
  });

  test('starts the task of another key while one is under way, and limits each key separately', async () => {
    const executor = new KeyedExecutor<string>(1);
    const gate = Promise.withResolvers<void>();
    const first = executor.run('a', async () => await gate.promise);
    expect(await executor.run('b', () => 1)).toBe(1);
    await expect(executor.run('a', () => 2)).rejects.toMatchObject({ code: 'queue-full' });
    expect(executor.waiting('a')).toBe(1);
    gate.resolve();
    await first;
    await executor.idle();
    expect(await executor.run('a', () => 3)).toBe(3);
  });
});
