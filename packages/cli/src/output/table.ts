import { stripVTControlCharacters } from 'node:util';

export interface Column<T> {
  readonly title: string;
  readonly value: (item: T) => string;
}

/** Columns are two spaces apart and the last one is not padded, on a terminal and in a pipe alike, so that `awk` can split them. */
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

/** Fills an empty cell, which would shift the columns of a line split at spaces. */
function cell(text: string): string {
  const clean = stripVTControlCharacters(text).replace(/\p{Cc}+/gu, ' ');
  return clean === '' ? '-' : clean;
}

let segmenter: Intl.Segmenter | undefined;
const plain = /^[ -~]*$/;
const wide = /\p{Extended_Pictographic}|[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]/u;

/** Terminal cells that the text takes: East Asian wide characters and emoji take two (Unicode, UAX #11). */
function width(text: string): number {
  if (plain.test(text)) return text.length;
  // Creating a segmenter takes longer than the rest of a short command.
  segmenter ??= new Intl.Segmenter();
  let cells = 0;
  for (const { segment } of segmenter.segment(text)) cells += wide.test(segment) ? 2 : 1;
  return cells;
}
