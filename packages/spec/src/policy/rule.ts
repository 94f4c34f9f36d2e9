import { invalid, quote } from '../invalid.ts';
import { maxRuleEntries } from '../limits.ts';
import { isPort, parsePort } from '../ports.ts';
import { formatHostPattern, parseHostPattern, type HostPattern } from './host-pattern.ts';

export const protocols = ['https', 'http', 'tls', 'tcp', 'git'] as const;
export type Protocol = (typeof protocols)[number];
export const actions = ['allow', 'deny', 'observe'] as const;
/** `observe` allows and reports. */
export type Action = (typeof actions)[number];

/** One rule of a policy (G-12), parsed. */
export interface Rule {
  readonly action: Action;
  readonly host: HostPattern;
  /** Ascending, at least one. */
  readonly ports: readonly number[];
  /** Undefined: every protocol. */
  readonly protocol: Protocol | undefined;
  /** In capitals, sorted; empty: every method. */
  readonly methods: readonly string[];
  /** Globs, sorted; empty: every path. */
  readonly paths: readonly string[];
  /** The secrets that the gateway adds to requests; sorted. */
  readonly credentials: readonly string[];
  /** The rule in one line, for people and logs; equal for equal rules. The short form where it suffices. */
  readonly text: string;
}

/** A rule as it is written in a policy file, in JSON and on the wire. Absent and empty fields have their defaults. */
export interface RuleDocument {
  readonly host: string;
  /** Default: 80 and 443. */
  readonly ports?: readonly number[] | undefined;
  readonly protocol?: string | undefined;
  readonly methods?: readonly string[] | undefined;
  readonly paths?: readonly string[] | undefined;
  /** Default: allow. */
  readonly action?: string | undefined;
  readonly credentials?: readonly string[] | undefined;
}

/** Without ports, a rule is for HTTP and HTTPS. */
export const defaultPorts: readonly number[] = [80, 443];

const methodPattern = /^[A-Z][A-Z-]{0,31}$/;
/** Visible ASCII from a slash on (RFC 3986, path), with `*` and `**` as globs. */
const pathPattern = /^\/[!-~]{0,1023}$/;
const credentialPattern = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;

/** @throws {DroverError} invalid-argument */
export function parseRule(document: RuleDocument): Rule {
  const { host, ports = [], protocol, action } = document;
  const rule: Omit<Rule, 'text'> = {
    action: oneOf('action', actions, action || 'allow'),
    host: parseHostPattern(host),
    ports: entries('port', ports.length === 0 ? defaultPorts : ports, isPort, 'write numbers from 1 to 65535').toSorted((a, b) => a - b),
    protocol: protocol === undefined || protocol === '' ? undefined : oneOf('protocol', protocols, protocol),
    methods: texts(
      'method',
      (document.methods ?? []).map((method) => method.toUpperCase()),
      methodPattern,
      'write GET, POST and the like',
    ),
    paths: texts('path', document.paths ?? [], pathPattern, 'write a path from a slash on, such as /v1/**'),
    credentials: texts('credential', document.credentials ?? [], credentialPattern, 'write the name of a secret'),
  };
  return { ...rule, text: textOf(rule) };
}

/**
 * The short form of a rule that allows: `HOST` or `HOST:PORT`, as --allow takes it. An IPv6 address or network with a port is in
 * brackets: `[fd00::/8]:443`. @throws {DroverError} invalid-argument
 */
export function parseShortRule(text: string): Rule {
  try {
    const { host, port } = splitPort(text.trim());
    return parseRule({ host, ...(port !== undefined && { ports: [parsePort(port)] }) });
  } catch (error) {
    throw invalid(
      `${quote(text)} cannot be allowed: it is not a host`,
      'write HOST, *.HOST, HOST:PORT or an address, such as example.org, *.example.org, example.org:8443, 10.1.2.3:8080 or 10.0.0.0/8',
      error,
    );
  }
}

function splitPort(text: string): { readonly host: string; readonly port?: string | undefined } {
  const [, bracketed, behind] = /^\[([^\]]*:[^\]]*)\](?::(.*))?$/.exec(text) ?? [];
  if (bracketed !== undefined) return { host: bracketed, port: behind };
  const [host = '', port, ...rest] = text.split(':');
  // More than one colon: an IPv6 address or network, which carries a port only behind brackets.
  return rest.length > 0 ? { host: text } : { host, port };
}

/** The document that `parseRule` reads as this rule, without what has its default. */
export function formatRule({ host, ports, protocol, methods, paths, action, credentials }: Rule): RuleDocument {
  return {
    host: formatHostPattern(host),
    ...(String(ports) !== String(defaultPorts) && { ports }),
    ...(protocol !== undefined && { protocol }),
    ...(methods.length > 0 && { methods }),
    ...(paths.length > 0 && { paths }),
    ...(action !== 'allow' && { action }),
    ...(credentials.length > 0 && { credentials }),
  };
}

function textOf({ host, ports, protocol, methods, paths, action, credentials }: Omit<Rule, 'text'>): string {
  const hostText = formatHostPattern(host);
  const portText = String(ports) === String(defaultPorts) ? '' : `:${ports.join(',')}`;
  return [
    action === 'allow' ? '' : action,
    portText !== '' && hostText.includes(':') ? `[${hostText}]${portText}` : `${hostText}${portText}`,
    protocol ?? '',
    methods.join(','),
    ...paths,
    credentials.length === 0 ? '' : `with ${credentials.join(',')}`,
  ]
    .filter((part) => part !== '')
    .join(' ');
}

function oneOf<T extends string>(what: string, known: readonly T[], text: string): T {
  const found = known.find((name) => name === text);
  if (found !== undefined) return found;
  throw invalid(`there is no ${what} ${quote(text)}`, `use ${known.join(', ')}`);
}

function texts(what: string, values: readonly string[], pattern: RegExp, hint: string): readonly string[] {
  return entries(what, values, (value) => pattern.test(value), hint).toSorted();
}

/** The values without repetition. */
function entries<T extends string | number>(
  what: string,
  values: readonly T[],
  isValid: (value: T) => boolean,
  hint: string,
): readonly T[] {
  if (values.length > maxRuleEntries) throw invalid(`a rule has ${values.length} ${what}s`, `use at most ${maxRuleEntries}, or more rules`);
  const wrong = values.find((value) => !isValid(value));
  if (wrong !== undefined) throw invalid(`${quote(String(wrong))} is not a ${what}`, hint);
  return [...new Set(values)];
}
