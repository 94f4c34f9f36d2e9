import { constants } from 'node:os';
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseSignal, signalExitCode, signalName } from './signals.ts';

test.each([
  ['SIGTERM', 15],
  ['TERM', 15],
  ['quit', 3],
  ['sigquit', 3],
  ['15', 15],
  ['37', 37],
  ['SIGRTMIN', 34],
  ['SIGRTMIN+3', 37],
  ['RTMIN+3', 37],
  ['rtmin+30', 64],
  ['SIGRTMAX', 64],
  ['RTMAX-14', 50],
  ['SIGIOT', 6],
  ['POLL', 29],
])('%j is signal %i', (text, number) => {
  expect(parseSignal(text)).toBe(number);
});

test.each(['', 'SIG', 'SIGFOO', '0', '65', '-9', '1.5', ' 15', 'RTMIN-1', 'RTMIN+31', 'RTMAX+1', 'RTMAX-31', 'SIGRTMIN+', '__proto__'])(
  '%j is not a signal, and the error names it',
  (text) => {
    expect(() => parseSignal(text)).toThrow(`${JSON.stringify(text)} is not a signal`);
  },
);

test('every signal of this machine has its own number', () => {
  for (const [name, number] of Object.entries(constants.signals)) expect([name, parseSignal(name)]).toEqual([name, number]);
});

test('a signal’s name is read back as its number', () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 64 }), (number) => parseSignal(signalName(number)) === number));
});

test('the exit status of a signal is 128 and its number', () => {
  expect([15, 37, 64].map(signalExitCode)).toEqual([143, 165, 192]);
});
