import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { api } from '@drover/protocol';
import { expect, test } from 'vitest';
import { cpuPercent } from './top.ts';

const usage = (atMs: number, cpuUsec: bigint, startCount = 1n): api.SandboxUsage =>
  create(api.SandboxUsageSchema, { cpuUsec, startCount, at: timestampFromMs(atMs) });

test('R-3: the share of CPU is the difference of two looks, in hundredths of one CPU', () => {
  expect(cpuPercent(usage(1_000, 500_000n), usage(2_000, 750_000n))).toBe(25);
  expect(cpuPercent(usage(1_000, 0n), usage(1_500, 1_000_000n))).toBe(200);
  expect(cpuPercent(usage(1_000, 5n), usage(2_000, 5n))).toBe(0);
});

test('there is none of a sandbox that has just come, was started again, or was looked at twice at once', () => {
  expect(cpuPercent(undefined, usage(2_000, 5n))).toBeUndefined();
  expect(cpuPercent(usage(1_000, 900n), usage(2_000, 5n, 2n))).toBeUndefined();
  expect(cpuPercent(usage(2_000, 5n), usage(2_000, 9n))).toBeUndefined();
});
