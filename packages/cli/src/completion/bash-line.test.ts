import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { splitBashLine } from './bash-line.ts';

/** bash's own default. */
const breaks = ' \t\n"\'><=;|&(:';
const split = (line: string): unknown => {
  const { words, current, kept } = splitBashLine(line, breaks);
  return [words, current, kept];
};

describe('a bash line becomes words without being evaluated', () => {
  test.each([
    ['drover ', [], '', 0],
    ['drover san', [], 'san', 0],
    ['./drover sandbox ls --pro', ['sandbox', 'ls'], '--pro', 0],
    ['drover logs web > important.txt --ta', ['logs', 'web'], '--ta', 0],
    ['drover logs web 2>/dev/null --ta', ['logs', 'web'], '--ta', 0],
    ['drover logs $(touch /tmp/x; (true)) --ta', ['logs', '$(touch /tmp/x; (true))'], '--ta', 0],
    ['drover logs `touch /tmp/x` --ta', ['logs', '`touch /tmp/x`'], '--ta', 0],
    ['drover logs <(touch /tmp/x) --ta', ['logs', '<(touch /tmp/x)'], '--ta', 0],
    ['drover logs $(touch', ['logs'], '$(touch', 2],
    ['A=1 B=2 drover ps --', ['ps'], '--', 0],
    ['true; drover ps --', ['ps'], '--', 0],
    ['true && drover ps --', ['ps'], '--', 0],
    ["drover run --env 'a b' --na", ['run', '--env', 'a b'], '--na', 0],
    ['drover run --env a\\ b --na', ['run', '--env', 'a b'], '--na', 0],
    ['drover cp web:/et', ['cp'], 'web:/et', 4],
    ['drover ps --output=js', ['ps'], '--output=js', 9],
    ['drover cp "web:/et', ['cp'], 'web:/et', 0],
    ["drover exec 'unfinished", ['exec'], 'unfinished', 0],
  ])('%s', (line, words, current, kept) => {
    expect(split(line)).toEqual([words, current, kept]);
  });

  test('any text is read to its end', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...Array.from('drover $()`"\'\\;|&<>:= \n\tab-')) }), (line) => {
        const { current, kept } = splitBashLine(line, breaks);
        expect(kept).toBeLessThanOrEqual(current.length);
      }),
    );
  });
});
