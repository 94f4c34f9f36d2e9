import { badRequest } from './refusal.ts';

/** Fields that belong to one connection and are not passed on (RFC 9110, 7.6.1), the older names among them. */
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
 * The end-to-end fields of a message, in their order and spelling, duplicates kept: without the hop-by-hop ones, those that
 * Connection names, and `drop` (lower case).
 * @param raw as node:http gives them: name, value, name, value, …
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

/** How a message's body is delimited. */
export type Framing = { readonly kind: 'none' } | { readonly kind: 'length'; readonly length: string } | { readonly kind: 'chunked' };

/**
 * Reads a request's framing, and refuses whatever two servers could read in two ways: both kinds at once, a repeated or odd
 * Content-Length, a Transfer-Encoding that is not exactly `chunked` (RFC 9112, 6.3; G-17).
 * Node's parser refuses most of these already; this check does not depend on its mode.
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
