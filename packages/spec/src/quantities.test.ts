import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  formatDuration,
  isPort,
  maxCpuMillis,
  parseBytes,
  parseCount,
  parseCpus,
  parseDurationMs,
  parseDurationWithin,
  parseLabel,
  parseLabels,
  parsePort,
} from './index.ts';

describe('quantities', () => {
  test.each([
    ['512m', 512 * 1024 ** 2],
    ['1.5g', 1.5 * 1024 ** 3],
    ['2GiB', 2 * 1024 ** 3],
    ['100', 100],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseBytes(text)).toBe(bytes);
  });

  test.each(['', '0', '-1', '1x', 'g', '1e9', '9999999999t'])('%j is not a size', (text) => {
    expect(() => parseBytes(text)).toThrowError(/is not a size/);
  });

  test.each([
    ['.5', 500],
    ['2', 2000],
    ['0.5', 500],
    ['250m', 250],
  ])('%s CPUs are %d thousandths', (text, millis) => {
    expect(parseCpus(text)).toBe(millis);
  });

  test.each(['', '0', '-1', 'x', '1.5.5', '2000'])('%j is not a number of CPUs', (text) => {
    expect(() => parseCpus(text)).toThrowError(/is not a number of CPUs/);
  });

  test.each([
    ['90', 90_000],
    ['1h30m', 5_400_000],
    ['500ms', 500],
  ])('%s is %d ms', (text, ms) => {
    expect(parseDurationMs(text)).toBe(ms);
  });

  test.each(['', 'soon', '1h 30', '-5s', 'm5'])('%j is not a duration', (text) => {
    expect(() => parseDurationMs(text)).toThrowError(/is not a duration/);
  });

  test('a number of bytes, of thousandths of a CPU, and a duration are read back as they were written', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }), (bytes) => {
        expect([parseBytes(String(bytes)), parseDurationMs(formatDuration(bytes))]).toEqual([bytes, bytes]);
      }),
    );
    fc.assert(fc.property(fc.integer({ min: 1, max: maxCpuMillis }), (millis) => parseCpus(`${millis}m`) === millis));
  });

  test.each([
    [0, '0s'],
    [500, '500ms'],
    [90_000, '90s'],
    [3_600_000, '1h'],
    [86_400_000, '1d'],
  ])('%d ms are written %s', (ms, text) => {
    expect(formatDuration(ms)).toBe(text);
  });

  test('no text makes a parser fail otherwise than with a hint', () => {
    fc.assert(
      fc.property(fc.string(), fc.constantFrom(parseBytes, parseCpus, parseDurationMs, parsePort, parseLabel), (text, parse) => {
        try {
          parse(text);
        } catch (error) {
          expect(error).toMatchObject({ code: 'invalid-argument', hint: expect.any(String) as string });
        }
      }),
    );
  });

  test('a duration outside its range is refused with the range', () => {
    expect(parseDurationWithin('--grace', '1h', 0, 3_600_000)).toBe(3_600_000);
    expect(() => parseDurationWithin('--grace', '61m', 0, 3_600_000)).toThrow(
      expect.objectContaining({ message: '--grace "61m" is too long', hint: 'use 0s to 1h' }),
    );
    expect(() => parseDurationWithin('--ttl', '1ms', 500, 9_000)).toThrow(expect.objectContaining({ hint: 'use 500ms to 9s' }));
  });

  test('a count is a whole number in its range', () => {
    expect(parseCount('--pids', '10', 10)).toBe(10);
    for (const text of ['0', '11', '1e3', '', '-1']) expect(() => parseCount('--pids', text, 10)).toThrow(/^--pids ".*" is not a number/);
  });
});

describe('ports', () => {
  test('every port is read back, and nothing else is a port', () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 65_535 }), (port) => parsePort(String(port)) === port && isPort(port)));
    for (const text of ['0', '65536', '080', '+80', '', '8 0']) expect(() => parsePort(text)).toThrow(/is not a port/);
    for (const port of [0, 65_536, 1.5, Number.NaN]) expect(isPort(port)).toBe(false);
  });
});

describe('labels', () => {
  test('the value is all that follows the first =', () => {
    expect(parseLabel('zone=a=b')).toEqual(['zone', 'a=b']);
    expect(parseLabel('gpu')).toEqual(['gpu', '']);
    expect(() => parseLabel('=x')).toThrowError(/is not a label/);
  });

  test('a key with = in it is refused rather than split', () => {
    expect(() => parseLabels({ 'a=b': '' })).toThrowError(/is not a label/);
  });

  test('more labels than allowed are refused', () => {
    expect(() => parseLabels(Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`k${i}`, ''])))).toThrowError('there are 65 labels');
  });
});
