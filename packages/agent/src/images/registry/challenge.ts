/** One challenge of a WWW-Authenticate header (RFC 9110 11.6.1). */
export interface Challenge {
  /** In lower case. */
  readonly scheme: string;
  /** Names in lower case. */
  readonly parameters: Readonly<Record<string, string>>;
}

/** The challenges of a header, up to the first malformed one. */
export function parseChallenges(header: string): readonly Challenge[] {
  const challenges: { scheme: string; parameters: Record<string, string> }[] = [];
  const token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
  const parameter = new RegExp(`^(${token})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|(${token}))`);
  const scheme = new RegExp(`^(${token})(?=\\s|,|$)`);
  let rest = header.slice(0, 8192);
  for (;;) {
    rest = rest.replace(/^[\s,]+/, '');
    if (rest === '') return challenges;
    const current = challenges.at(-1);
    const pair = parameter.exec(rest);
    if (pair !== null && current !== undefined) {
      current.parameters[(pair[1] as string).toLowerCase()] = pair[2] === undefined ? (pair[3] as string) : pair[2].replace(/\\(.)/g, '$1');
      rest = rest.slice(pair[0].length);
      continue;
    }
    const start = scheme.exec(rest);
    if (start === null) return challenges;
    challenges.push({ scheme: (start[1] as string).toLowerCase(), parameters: {} });
    rest = rest.slice(start[0].length);
  }
}
