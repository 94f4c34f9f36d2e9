import { DroverError, clip } from '@drover/foundation';
import { parsePort } from '@drover/spec';
import ipaddr from 'ipaddr.js';
import { parseHostOfPerson, unmapped, type Host } from './host.ts';

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** One entry of an allow list, parsed. */
export type Pattern = { readonly text: string; readonly ports: readonly number[] } & (
  | { readonly kind: 'name'; readonly name: string }
  /** `*.name`: one label or more in front of it, not the name itself. */
  | { readonly kind: 'below'; readonly name: string }
  | { readonly kind: 'network'; readonly network: Address; readonly prefix: number }
  /** `internet`: every name and address, as far as the address is public. */
  | { readonly kind: 'internet' }
);

/** Without a port, a pattern stands for HTTP and HTTPS. */
export const defaultPorts: readonly number[] = [80, 443];

/**
 * Parses `host`, `*.host`, `192.0.2.7`, `[2001:db8::1]`, `10.0.0.0/8`, `internet`, each with `:port` behind it or not
 * (an IPv6 address or network with a port needs the brackets: `[fd00::/8]:443`).
 * @throws {DroverError} invalid-argument
 */
export function parsePattern(text: string): Pattern {
  try {
    const { host, ports } = splitPort(text.trim());
    if (host.toLowerCase() === 'internet') return { text, ports, kind: 'internet' };
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

/** Reports whether the pattern covers the requested host. An address is covered by addresses, networks and `internet` only. */
export function matchesHost(pattern: Pattern, host: Host, port: number): boolean {
  if (!pattern.ports.includes(port)) return false;
  if (pattern.kind === 'internet') return true;
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

/** Reports whether the pattern is for one address. */
export function isSingle(pattern: Pattern): boolean {
  return pattern.kind === 'network' && pattern.prefix === bits(pattern.network);
}

/** The first and the last address of a pattern for a network. @throws {TypeError} for another pattern */
export function networkEnds(pattern: Pattern): readonly [Address, Address] {
  if (pattern.kind !== 'network') throw new TypeError(`${pattern.text} is not a network`);
  const first = pattern.network.toByteArray();
  const last = [...first];
  for (let bit = 0; bit < first.length * 8; bit++) {
    if (bit < pattern.prefix) continue;
    const mask = 0x80 >> (bit % 8);
    const at = Math.floor(bit / 8);
    first[at] = (first[at] ?? 0) & ~mask;
    last[at] = (last[at] ?? 0) | mask;
  }
  return [ipaddr.fromByteArray(first), ipaddr.fromByteArray(last)];
}

/** Reports whether the pattern is this address, or a network that contains it. */
export function containsAddress(pattern: Pattern, address: Address): boolean {
  if (pattern.kind !== 'network') return false;
  const plain = unmapped(address);
  if (plain instanceof ipaddr.IPv4) return pattern.network instanceof ipaddr.IPv4 && plain.match(pattern.network, pattern.prefix);
  return pattern.network instanceof ipaddr.IPv6 && plain.match(pattern.network, pattern.prefix);
}
