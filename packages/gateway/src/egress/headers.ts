import { badRequest } from './refusal.ts';

/** Fields of one connection, which are not forwarded (RFC 9110, 7.6.1), older names included. */
const hopByHop = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-authentication-info',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);

/**
 * The end-to-end fields of a message in their order and spelling, with duplicates: all but the hop-by-hop fields, those that Connection names,
 * and `drop` (lower case).
 * @param raw in the form of node:http: name, value, name, value, …
 */
export function endToEndHeaders(raw: readonly string[], drop: readonly string[] = []): string[] {
  const dropped = new Set([...hopByHop, ...drop]);
  for (const [name, value] of pairs(raw)) {
    if (name.toLowerCase() !== 'connection') continue;
    for (const option of value.split(',')) dropped.add(option.trim().toLowerCase());
  }
  return pairs(raw)
    .filter(([name]) => !dropped.has(name.toLowerCase()))
    .flat();
}

/** How the body of a message is delimited. */
export type Framing = { readonly kind: 'none' } | { readonly kind: 'length'; readonly length: string } | { readonly kind: 'chunked' };

/**
 * Reads the framing of a request, and refuses everything that two servers could read differently: both kinds together, a repeated or invalid
 * Content-Length, a Transfer-Encoding other than `chunked` (RFC 9112, 6.3; G-17: request smuggling). Node's parser refuses most of these, depending
 * on its mode.
 */
export function requestFraming(raw: readonly string[]): Framing {
  const values = (wanted: string): string[] => pairs(raw).flatMap(([name, value]) => (name.toLowerCase() === wanted ? [value.trim()] : []));
  const lengths = values('content-length');
  const encodings = values('transfer-encoding');
  if (lengths.length > 0 && encodings.length > 0) throw badRequest('a request has either Content-Length or Transfer-Encoding, not both');
  if (encodings.length > 0) {
    if (encodings.length > 1 || encodings[0]?.toLowerCase() !== 'chunked')
      throw badRequest('the only transfer encoding of a request is chunked');
    return { kind: 'chunked' };
  }
  if (lengths.length === 0) return { kind: 'none' };
  const [length = ''] = lengths;
  if (lengths.length > 1 || !/^\d{1,15}$/.test(length)) throw badRequest('the request has no clear Content-Length');
  return { kind: 'length', length };
}

function pairs(raw: readonly string[]): [string, string][] {
  const result: [string, string][] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) result.push([raw[i] as string, raw[i + 1] as string]);
  return result;
}
