import { newSandboxId } from '@drover/foundation';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { crashDelayBaseMs, crashDelayCapMs, crashesBeforeTrials, crashTrialCapMs, crashTrialMs } from '../../limits.ts';
import { begin, noCrash, parseRecord, suspectDelayMs, trialMs, type CrashRecord } from './crash-record.ts';

const [a, b] = [newSandboxId(), newSandboxId()];
const died: CrashRecord = { ...noCrash, running: true };

describe('a server begins', () => {
  test('without trials and suspects when it is the first, or the previous server closed', () => {
    for (const left of [noCrash, { ...noCrash, crashes: 5 }]) {
      expect(begin(left, '')).toEqual({ crashes: 0, suspects: new Map(), allOnTrial: false });
    }
  });

  test('without trials after one crash, which may have been a kill of a healthy server', () => {
    expect(begin(died, '')).toMatchObject({ crashes: 1, allOnTrial: false });
    expect(begin({ ...died, settled: true, crashes: 7 }, '')).toMatchObject({ crashes: 1, allOnTrial: false });
  });

  test('with trials after several crashes in a row', () => {
    expect(begin({ ...died, crashes: crashesBeforeTrials - 1 }, 'SIGABRT')).toMatchObject({
      crashes: crashesBeforeTrials,
      allOnTrial: true,
    });
  });

  test('with the sandboxes on trial as the only suspects when the previous server crashed during a trial', () => {
    const { suspects, allOnTrial } = begin({ ...died, crashes: 4, trial: [a, b], suspects: { [b]: 2 } }, '');
    expect([...suspects]).toEqual([
      [b, 3],
      [a, 1],
    ]);
    expect(allOnTrial).toBe(false);
  });

  test.each(['SIGKILL', 'SIGTERM'])('with unchanged counts when the previous server was ended from outside (%s)', (signal) => {
    expect(begin({ ...died, crashes: 9, trial: [a], suspects: { [b]: 2 } }, signal)).toEqual({
      crashes: 9,
      suspects: new Map([[b, 2]]),
      allOnTrial: true,
    });
    expect(begin(died, signal)).toEqual({ crashes: 0, suspects: new Map(), allOnTrial: false });
    expect(begin({ ...died, crashes: 9, settled: true }, signal)).toMatchObject({ crashes: 0, allOnTrial: false });
  });

  test.each(['SIGABRT', 'SIGSEGV', '1', '134'])('with one more crash when the previous server ended unexpectedly (%s)', (end) => {
    expect(begin(died, end)).toMatchObject({ crashes: 1 });
  });

  test('with the same suspects when the previous server closed', () => {
    expect([...begin({ ...noCrash, suspects: { [a]: 3 } }, '').suspects]).toEqual([[a, 3]]);
  });
});

test('trials and delays grow with the crashes, up to a limit', () => {
  expect([2, 3, 4, 1_000].map(trialMs)).toEqual([crashTrialMs, 2 * crashTrialMs, 4 * crashTrialMs, crashTrialCapMs]);
  expect([1, 2, 3, 1_000].map(suspectDelayMs)).toEqual([crashDelayBaseMs, 2 * crashDelayBaseMs, 4 * crashDelayBaseMs, crashDelayCapMs]);
});

test('any file can be read as a record', () => {
  const record = fc.record({
    running: fc.boolean(),
    settled: fc.boolean(),
    crashes: fc.nat(),
    trial: fc.subarray([a, b]),
    suspects: fc.dictionary(fc.constantFrom(a, b), fc.integer({ min: 1, max: 9 }), { noNullPrototype: true }),
  });
  fc.assert(
    fc.property(record, (value) => {
      expect(parseRecord(JSON.stringify(value))).toEqual(value);
    }),
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.json(),
        fc.jsonValue().map((value) => JSON.stringify({ crashes: 1, trial: value, suspects: value })),
      ),
      (text) => {
        const { crashes, trial, suspects } = parseRecord(text);
        expect(crashes).toBeGreaterThanOrEqual(0);
        expect(trial).toEqual([]);
        expect(suspects).toEqual({});
      },
    ),
  );
});
