import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Headers as Own } from './headers.ts';

/** A sequence of operations on both implementations, whose results must be equal. */
type Act = readonly ['append' | 'set', string, string] | readonly ['get' | 'has' | 'delete', string];

function play(headers: Own | Headers, acts: readonly Act[]): unknown[] {
  const answers = acts.map((act): unknown => {
    try {
      switch (act[0]) {
        case 'append':
        case 'set':
          return headers[act[0]](act[1], act[2]);
        default:
          return headers[act[0]](act[1]);
      }
    } catch (error) {
      return error instanceof TypeError ? 'refused' : error;
    }
  });
  const each: string[][] = [];
  headers.forEach((value, key) => each.push([key, value]));
  return [answers, [...headers], [...headers.entries()], [...headers.keys()], [...headers.values()], headers.getSetCookie(), each];
}

const name = fc.oneof(
  fc.constantFrom('a', 'A', 'b-c', 'B-C', 'set-cookie', 'Set-Cookie', 'grpc-status', '', 'a b', 'é', 'a:'),
  fc.string({ maxLength: 3 }),
);
const value = fc.oneof(
  fc.constantFrom('', ' x ', 'a, b', 'a\nb', '\tx\r\n', 'a\0', 'é', 'ÿ', '→'),
  fc.string({ maxLength: 5, unit: 'binary' }),
);
const act = fc.oneof(
  fc.tuple(fc.constantFrom('append' as const, 'set' as const), name, value),
  fc.tuple(fc.constantFrom('get' as const, 'has' as const, 'delete' as const), name),
);

describe("the replacement of Headers behaves like the platform's class", () => {
  it('for any operations', () => {
    fc.assert(
      fc.property(fc.array(act, { maxLength: 12 }), (acts) => {
        expect(play(new Own(), acts)).toEqual(play(new Headers(), acts));
      }),
      { numRuns: 500 },
    );
  });

  it.each([
    ['a record', { 'X-A': '1', b: '2' }],
    ['pairs', [['X-A', '1'] as const, ['x-a', '2'] as const]],
    ['Headers', new Headers([['a', '1']])],
    ['nothing', undefined],
  ])('made of %s', (_, init) => {
    expect([...new Own(init as never)]).toEqual([...new Headers(init as never)]);
    expect([...new Own(new Own(init as never))]).toEqual([...new Headers(init as never)]);
  });
});
