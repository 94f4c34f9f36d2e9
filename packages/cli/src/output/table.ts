import { stripVTControlCharacters } from 'node:util';

export interface Column<T> {
  readonly title: string;
  readonly value: (item: T) => string;
}

/** Columns two spaces apart, the last one not padded: the same on a terminal and in a pipe, easy for `awk`. */
export function table<T>(items: readonly T[], columns: readonly Column<T>[]): string {
  const rows = [columns.map((c) => c.title), ...items.map((item) => columns.map((c) => cell(c.value(item))))];
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => width(row[i] ?? ''))));
  return rows
    .map((row) =>
      row
        .map((text, i) => (i === row.length - 1 ? text : text + ' '.repeat((widths[i] ?? 0) - width(text))))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** An empty cell would shift the columns for whoever splits at spaces. */
function cell(text: string): string {
  const clean = stripVTControlCharacters(text).replace(/\p{Cc}+/gu, ' ');
  return clean === '' ? '-' : clean;
}

let segmenter: Intl.Segmenter | undefined;
const plain = /^[ -~]*$/;
const wide = /\p{Extended_Pictographic}|[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]/u;

/** Cells that the text takes on a terminal: East Asian wide characters and emoji take two (Unicode, UAX #11). */
function width(text: string): number {
  if (plain.test(text)) return text.length;
  // Making one takes longer than all else that a short command does.
  segmenter ??= new Intl.Segmenter();
  let cells = 0;
  for (const { segment } of segmenter.segment(text)) cells += wide.test(segment) ? 2 : 1;
  return cells;
}
