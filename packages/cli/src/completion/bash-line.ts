/** The words of a command line that is being typed, and how much of the last one the shell keeps. */
export interface TypedLine {
  /** The words before the one at the cursor, without the program's own name. */
  readonly words: readonly string[];
  /** The word at the cursor, as far as it is typed and without its quotes. */
  readonly current: string;
  /** Characters at the start of `current` that bash leaves as they are: it replaces what follows the last of its word breaks. */
  readonly kept: number;
}

const separators = /^(?:;|&|\||\n|\(|\))/;
const redirection = /^(?:&>>|&>|>&|<&|>>|<<<|<<|<>|>\||[<>](?!\())/;

/**
 * Splits a bash command line into words by its quotes, escapes and operators. Nothing is expanded: `$(…)`, backquotes and variables
 * are characters like any other, so that no word of the line is ever evaluated. Targets of redirections are left out, as they are no
 * arguments.
 * @param line what is typed, up to the cursor
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

/** The word that begins at `from`. An open quote reaches to the end of the line. */
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

/** Behind the substitution that begins at `from`: of `$(…)`, `<(…)` and `>(…)` the matching parenthesis, else the next backquote. */
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

/** Without leading assignments and the name of the program. */
function argumentsOf(words: readonly string[]): readonly string[] {
  const program = words.findIndex((word) => !/^[A-Za-z_][A-Za-z0-9_]*=/.test(word));
  return program < 0 ? [] : words.slice(program + 1);
}

/** Up to and with the last word break: bash takes what follows for the word to complete. */
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
