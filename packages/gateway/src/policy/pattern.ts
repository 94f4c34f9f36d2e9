import { DroverError, clip } from '@drover/foundation';
import ipaddr from 'ipaddr.js';
import { parseHostOfPerson, parsePort, unmapped, type Host } from './host.ts';

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** One entry of an allow list, parsed. */
export type Pattern = { readonly text: string; readonly ports: readonly number[] } & (
  | { readonly kind: 'name'; readonly name: string }
  /** `*.name`: one label or more in front of it, not the name itself. */
  | { readonly kind: 'below'; readonly name: string }
  | { readonly kind: 'network'; readonly network: Address; readonly prefix: number }
);

/** Without a port, a pattern stands for HTTP and HTTPS. */
export const defaultPorts: readonly number[] = [80, 443];

/**
 * Parses `host`, `*.host`, `192.0.2.7`, `[2001:db8::1]`, `10.0.0.0/8`, each with `:port` behind it or not
 * (an IPv6 address or network with a port needs the brackets: `[fd00::/8]:443`).
 * @throws {DroverError} invalid-argument
 */
export function parsePattern(text: string): Pattern {
  try {
    const { host, ports } = splitPort(text.trim());
    if (host.includes('/')) return { text, ports, kind: 'network', ...parseNetwork(host) };
    if (host.startsWith('*.')) {
      const below = parseHostOfPerson(host.slice(2));
      if (below.kind !== 'name') throw new DroverError('invalid-argument', 'an address has no names below it');
      return { text, ports, kind: 'below', name: below.name };
    }
    const parsed = parseHostOfPerson(host);
    if (parsed.kind === 'name') return { text, ports, kind: 'name', name: parsed.name };
    return { text, ports, kind: 'network', network: parsed.address, prefix: bits(parsed.address) };
  } catch (error) {
    throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} cannot be allowed: it is not a host`, {
      hint: 'write HOST, *.HOST, HOST:PORT or an address, such as example.org, *.example.org, example.org:8443, 10.1.2.3:8080 or 10.0.0.0/8',
      cause: error,
    });
  }
}

function splitPort(text: string): { host: string; ports: readonly number[] } {
  const bracketed = /^\[([^\]]*)\](?::(.*))?$/.exec(text);
  if (bracketed !== null) {
    const inner = bracketed[1] ?? '';
    if (!inner.includes(':')) throw new DroverError('invalid-argument', 'brackets are for IPv6 addresses');
    return { host: inner, ports: bracketed[2] === undefined ? defaultPorts : [parsePort(bracketed[2])] };
  }
  const colons = text.split(':').length - 1;
  // More than one colon: a bare IPv6 address, which cannot carry a port.
  if (colons !== 1) return { host: text, ports: defaultPorts };
  const [host = '', port = ''] = text.split(':');
  return { host, ports: [parsePort(port)] };
}

function parseNetwork(text: string): { network: Address; prefix: number } {
  const [address = '', prefixText = '', ...rest] = text.split('/');
  const host = parseHostOfPerson(address);
  const prefix = /^\d{1,3}$/.test(prefixText) ? Number(prefixText) : -1;
  if (host.kind !== 'address' || rest.length > 0 || prefix < 0 || prefix > bits(host.address)) {
    throw new DroverError('invalid-argument', `${clip(text)} is not a network`);
  }
  return { network: host.address, prefix };
}

function bits(address: Address): number {
  return address.kind() === 'ipv4' ? 32 : 128;
}

/** Does the pattern name what was asked for? An address is matched by patterns that are addresses or networks only. */
export function matchesHost(pattern: Pattern, host: Host, port: number): boolean {
  if (!pattern.ports.includes(port)) return false;
  if (host.kind === 'address') return containsAddress(pattern, host.address);
  switch (pattern.kind) {
    case 'name':
      return host.name === pattern.name;
    case 'below':
      return host.name.endsWith(`.${pattern.name}`);
    case 'network':
      break;
  }
  return false;
}

/** Does the pattern name this very address, or a network that it is in? */
export function containsAddress(pattern: Pattern, address: Address): boolean {
  if (pattern.kind !== 'network') return false;
  const plain = unmapped(address);
  if (plain instanceof ipaddr.IPv4) return pattern.network instanceof ipaddr.IPv4 && plain.match(pattern.network, pattern.prefix);
  return pattern.network instanceof ipaddr.IPv6 && plain.match(pattern.network, pattern.prefix);
}
