/** The words of an unfinished command line. */
export interface TypedLine {
  /** The words before the cursor's word, without the program name. */
  readonly words: readonly string[];
  /** The word at the cursor, without quotes. */
  readonly current: string;
  /** How many characters at the start of `current` bash keeps: it replaces only the text after the last word break. */
  readonly kept: number;
}

const separators = /^(?:;|&|\||\n|\(|\))/;
const redirection = /^(?:&>>|&>|>&|<&|>>|<<<|<<|<>|>\||[<>](?!\())/;

/**
 * Splits a bash command line into words at quotes, escapes and operators. Expands nothing: `$(…)`, backquotes and variables are ordinary
 * characters, so no word is ever evaluated. Leaves out the targets of redirections, which are not arguments.
 * @param line the text up to the cursor
 * @param breaks COMP_WORDBREAKS
 */
export function splitBashLine(line: string, breaks: string): TypedLine {
  let words: string[] = [];
  let at = 0;
  let skipNext = false;
  for (;;) {
    while (/[ \t]/.test(line[at] ?? '')) at++;
    const rest = line.slice(at);
    const redirected = redirection.exec(rest)?.[0];
    if (redirected !== undefined) {
      at += redirected.length;
      skipNext = true;
      continue;
    }
    const separator = separators.exec(rest)?.[0];
    if (separator !== undefined) {
      at += separator.length;
      words = [];
      continue;
    }
    const word = readWord(line, at);
    if (word.end === line.length) {
      const kept = word.quoted ? 0 : lastBreak(word.text, breaks);
      return { words: argumentsOf(words), current: word.text, kept };
    }
    at = word.end;
    // `2>file`: the number belongs to the redirection.
    const isDescriptor = /^\d+$/.test(word.text) && /^[<>]/.test(line.slice(at));
    if (!skipNext && !isDescriptor) words.push(word.text);
    skipNext = false;
  }
}

/** The word that starts at `from`. An open quote extends to the end of the line. */
function readWord(line: string, from: number): { readonly text: string; readonly end: number; readonly quoted: boolean } {
  let text = '';
  let at = from;
  let quoted = false;
  while (at < line.length) {
    const char = line[at] ?? '';
    if (char === "'" || char === '"') {
      quoted = true;
      at++;
      while (at < line.length && line[at] !== char) {
        if (char === '"' && line[at] === '\\' && at + 1 < line.length) at++;
        text += line[at] ?? '';
        at++;
      }
      at++;
    } else if (char === '\\') {
      text += line[at + 1] ?? '';
      at += 2;
    } else if (char === '`' || /^[$<>]\(/.test(line.slice(at))) {
      const end = substitutionEnd(line, at);
      text += line.slice(at, end);
      at = end;
    } else if (/[\s;&|<>()]/.test(char)) {
      break;
    } else {
      text += char;
      at++;
    }
  }
  return { text, end: Math.min(at, line.length), quoted };
}

/** The end of the substitution that starts at `from`: after the matching parenthesis of `$(…)`, `<(…)` and `>(…)`, or the next backquote. */
function substitutionEnd(line: string, from: number): number {
  if (line[from] === '`') {
    const close = line.indexOf('`', from + 1);
    return close < 0 ? line.length : close + 1;
  }
  let depth = 0;
  for (let at = from + 1; at < line.length; at++) {
    if (line[at] === '(') depth++;
    else if (line[at] === ')' && --depth === 0) return at + 1;
  }
  return line.length;
}

/** The words after leading assignments and the program name. */
function argumentsOf(words: readonly string[]): readonly string[] {
  const program = words.findIndex((word) => !/^[A-Za-z_][A-Za-z0-9_]*=/.test(word));
  return program < 0 ? [] : words.slice(program + 1);
}

/** The length up to and including the last word break. Bash completes only the text after it. */
function lastBreak(text: string, breaks: string): number {
  return (
    Math.max(
      ...Array.from(breaks)
        .filter((char) => !/\s/.test(char))
        .map((char) => text.lastIndexOf(char)),
      -1,
    ) + 1
  );
}
