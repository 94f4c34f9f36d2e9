import { domainToASCII } from 'node:url';
import ipaddr from 'ipaddr.js';
import { invalid, quote } from '../invalid.ts';
import { parsePort } from '../ports.ts';

export type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** A requested destination: a DNS name in its canonical form, or an address. */
export type Host = { readonly kind: 'name'; readonly name: string } | { readonly kind: 'address'; readonly address: Address };

const label = /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/;
const dottedQuad = /^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$/;

/**
 * Parses a host from the wire, strictly: lower case, at most one trailing dot (dropped), labels of letters, digits, hyphens and
 * underscores (RFC 1123, RFC 2181), IPv6 in brackets or bare, IPv4 as four decimal numbers. Other spellings of IPv4 (`127.1`,
 * `0x7f.0.0.1`, `2130706433`), zones and percent signs are refused: resolvers disagree on what they mean.
 * @throws {DroverError} invalid-argument
 */
export function parseHost(text: string): Host {
  if (text.startsWith('[') || text.includes(':')) return { kind: 'address', address: parseIPv6(text) };
  const name = (text.endsWith('.') ? text.slice(0, -1) : text).toLowerCase();
  if (dottedQuad.test(name)) return { kind: 'address', address: ipaddr.IPv4.parse(name) };
  const labels = name.split('.');
  const last = labels.at(-1) ?? '';
  // A last label of digits makes it an IPv4 address to a URL parser (WHATWG URL, "ends in a number checker").
  if (name.length > 253 || !labels.every((l) => label.test(l)) || /^(?:\d+|0x[0-9a-f]*)$/.test(last)) throw notAHost(text);
  return { kind: 'name', name };
}

/**
 * Parses a host as a person writes it: as `parseHost`, and a name in another script becomes its A-label (`bücher.example` →
 * `xn--bcher-kva.example`), which is the name that the resolver asks for. @throws {DroverError} invalid-argument
 */
export function parseWrittenHost(text: string): Host {
  if (/^[!-~]*$/.test(text)) return parseHost(text);
  // As a host of a URL it would be cut at a slash and the like.
  if (/[\s%@/?#\\:[\]]/.test(text)) throw notAHost(text);
  return parseHost(domainToASCII(text));
}

function parseIPv6(text: string): Address {
  const bare = text.startsWith('[') && text.endsWith(']') ? text.slice(1, -1) : text;
  if (!/^[0-9a-fA-F:.]+$/.test(bare) || !ipaddr.IPv6.isValid(bare)) throw notAHost(text);
  return unmapped(ipaddr.IPv6.parse(bare));
}

/** `::ffff:10.0.0.1` is 10.0.0.1 to the kernel, and therefore here. */
export function unmapped(address: Address): Address {
  return address instanceof ipaddr.IPv6 && address.isIPv4MappedAddress() ? address.toIPv4Address() : address;
}

/** Parses an address in any spelling that the kernel or a resolver prints. @throws {DroverError} invalid-argument */
export function parseAddress(text: string): Address {
  const host = parseHost(text);
  if (host.kind !== 'address') throw notAHost(text);
  return host.address;
}

/** `host:port` as CONNECT carries it (RFC 9112, authority-form); without a port, `defaultPort`. @throws {DroverError} invalid-argument */
export function parseAuthority(text: string, defaultPort?: number): { readonly host: Host; readonly port: number } {
  const [, host = '', portText] = /^(\[[^\]]*\]|[^:[\]]*)(?::(\d*))?$/.exec(text) ?? [];
  if (host === '' || portText === '') throw notAHost(text);
  const port = portText === undefined ? defaultPort : parsePort(portText);
  if (port === undefined) throw invalid(`${quote(text)} names no port`, 'write HOST:PORT');
  return { host: parseHost(host), port };
}

/** For people and logs: IPv6 in brackets. */
export function formatHost(host: Host): string {
  if (host.kind === 'name') return host.name;
  return host.address.kind() === 'ipv6' ? `[${host.address.toString()}]` : host.address.toString();
}

function notAHost(text: string): Error {
  return invalid(`${quote(text)} is not a host name or an address`, 'write a name such as example.org, or an address such as 192.0.2.7');
}
