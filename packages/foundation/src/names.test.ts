import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  canonicalCommonName,
  DroverError,
  isHostId,
  isSandboxId,
  makeUpName,
  newHostId,
  newSandboxId,
  parseName,
  parseProject,
  parseSandboxId,
} from './index.ts';

const label = (max: number): fc.Arbitrary<string> =>
  fc.stringMatching(/^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/).filter((text) => text.length <= max);

describe('names', () => {
  test('I-5: every project and name that is accepted gives a CN of at most 64 characters', () => {
    fc.assert(
      fc.property(fc.oneof(fc.constant(''), label(24)), label(39), (project, name) => {
        const commonName = canonicalCommonName(parseProject(project), parseName(name));
        expect(commonName.length).toBeLessThanOrEqual(64);
      }),
    );
  });

  test('I-5: two different pairs never share a CN', () => {
    const pair = fc.tuple(fc.oneof(fc.constant(''), label(24)), label(39));
    fc.assert(
      fc.property(pair, pair, ([p1, n1], [p2, n2]) => {
        fc.pre(p1 !== p2 || n1 !== n2);
        expect(canonicalCommonName(parseProject(p1), parseName(n1))).not.toBe(canonicalCommonName(parseProject(p2), parseName(n2)));
      }),
    );
  });

  test('I-5: the longest pair is accepted, one character more is refused, never cut', () => {
    expect(canonicalCommonName(parseProject('p'.repeat(24)), parseName('n'.repeat(39)))).toHaveLength(64);
    expect(() => parseProject('p'.repeat(25))).toThrowError(/25 characters/);
    expect(() => parseName('n'.repeat(40))).toThrowError(/40 characters/);
  });

  test.each(['', '-a', 'a-', 'A', 'a_b', 'a.b', 'ä', 'a b', 'a\n'])('%j is not a name, and the error says what is', (text) => {
    expect(() => parseName(text)).toThrowError(DroverError);
    try {
      parseName(text);
    } catch (error) {
      expect(error).toMatchObject({ code: 'invalid-name', hint: expect.stringContaining('lower-case') });
    }
  });

  test('made-up names are names', () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (random) => {
        expect(parseName(makeUpName(() => random))).toBeDefined();
      }),
    );
  });
});

describe('ids', () => {
  test('new ids are of their kind and of no other', () => {
    const [host, sandbox] = [newHostId(), newSandboxId()];
    expect([isHostId(host), isHostId(sandbox), isSandboxId(sandbox), isSandboxId(host)]).toEqual([true, false, true, false]);
  });

  test('what is not an id is refused with at most a hundred characters of it', () => {
    expect(() => parseSandboxId('x'.repeat(10_000))).toThrowError(/^.{1,140}$/);
  });
});
