import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, TestDrover, tracesOf } from './harness/index.ts';

describe('R-1: drover up', () => {
  let drover: TestDrover;

  beforeAll(async () => {
    drover = await TestDrover.start();
  });
  afterAll(async () => {
    const left = drover === undefined ? undefined : await tracesOf(drover);
    await drover[Symbol.asyncDispose]();
    // removal leaves no trace of a sandbox.
    expect(await left?.()).toEqual([]);
  });

  test('prints a ready line with the address and the next command to type', () => {
    expect(drover.output).toMatch(/^drover: ready on https:\/\/127\.0\.0\.1:\d+ — try: \.\/drover run host -- sh$/m);
  });

  test('drover run host runs in a sandbox without any registry, and returns the status of the command', async () => {
    const { code, stdout } = await drover.run(['run', '--rm', 'host', '--', 'sh', '-c', 'echo inside as $(id -u); exit 7']);
    expect({ code, stdout }).toEqual({ code: 7, stdout: 'inside as 0\n' });
  });

  test('a second up on the same data is refused with one sentence', async () => {
    const { code, stderr } = await drover.run(['up', '--data', drover.data, '--listen', '127.0.0.1:0']);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/already running/);
  });

  test('Ctrl-C stops up cleanly, sandboxes keep running, and a second up adopts them', async () => {
    await drover.run(['run', '-d', '--name', 'stays', 'host', '--', 'sh', '-c', 'while :; do date +%s%N; sleep 0.2; done']);
    const { startCount, state } = await eventually('the sandbox runs', async () => {
      const sandbox = await drover.sandbox<{ state: string; startCount: number }>('stays');
      return sandbox.state === 'running' ? sandbox : undefined;
    });
    expect(await drover.interrupt()).toBe(0);
    await drover.up();
    const after = await eventually('the sandbox is adopted', async () => {
      const sandbox = await drover.sandbox<{ state: string; startCount: number }>('stays');
      return sandbox.state === state ? sandbox : undefined;
    });
    expect(after.startCount).toBe(startCount);
    const exec = await drover.run(['exec', 'stays', '--', 'echo', 'still here']);
    expect(exec).toMatchObject({ code: 0, stdout: 'still here\n' });
  });
});
