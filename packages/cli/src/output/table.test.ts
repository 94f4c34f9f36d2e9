import { expect, test } from 'vitest';
import { table } from './table.ts';

interface Row {
  readonly a: string;
  readonly b: string;
}
const columns = [
  { title: 'A', value: (row: Row) => row.a },
  { title: 'B', value: (row: Row) => row.b },
];

test('R-3: columns line up, an empty cell is a dash, and nothing trails', () => {
  expect(
    table(
      [
        { a: 'long one', b: 'x' },
        { a: '', b: '' },
      ],
      columns,
    ),
  ).toBe('A         B\nlong one  x\n-         -');
});

test('wide characters take two cells', () => {
  expect(table([{ a: '箱', b: 'x' }], columns).split('\n')[0]).toBe('A   B');
});

test('control sequences of a name never reach the terminal', () => {
  const shown = table([{ a: '\u001b[31mred\u001b[0m\nnext', b: 'x' }], columns);
  expect(shown).toBe('A         B\nred next  x');
});
