import ipaddr from 'ipaddr.js';
import { invalid, quote } from '../invalid.ts';
import { parseWrittenHost, unmapped, type Address, type Host } from './host.ts';

/** The hosts that a rule is for. */
export type HostPattern =
  | { readonly kind: 'name'; readonly name: string }
  /** `*.name`: one or more labels before the name; not the name itself. */
  | { readonly kind: 'subdomains'; readonly name: string }
  /** The addresses that share their first `prefix` bits with `first`, the lowest of them. */
  | { readonly kind: 'network'; readonly first: Address; readonly prefix: number }
  /** Every name, and every address as far as it is public. */
  | { readonly kind: 'internet' };

/**
 * `host`, `*.host`, `192.0.2.7`, `2001:db8::1`, `10.0.0.0/8` or `internet`; names in another script become their A-labels.
 * @throws {DroverError} invalid-argument
 */
export function parseHostPattern(text: string): HostPattern {
  if (text.toLowerCase() === 'internet') return { kind: 'internet' };
  const [hostText = '', prefixText, ...rest] = text.split('/');
  const below = hostText.startsWith('*.');
  const host = parseWrittenHost(below ? hostText.slice(2) : hostText);
  if (host.kind === 'name' && prefixText === undefined) return { kind: below ? 'subdomains' : 'name', name: host.name };
  if (host.kind === 'address' && !below && rest.length === 0) {
    const prefix = prefixText === undefined ? bits(host.address) : /^\d{1,3}$/.test(prefixText) ? Number(prefixText) : -1;
    if (prefix >= 0 && prefix <= bits(host.address)) return { kind: 'network', first: end(host.address, prefix, 0), prefix };
  }
  throw invalid(`${quote(text)} names no hosts`, 'write a host, *.host, an address, a network such as 10.0.0.0/8, or internet');
}

/** The text that `parseHostPattern` reads as this pattern. */
export function formatHostPattern(pattern: HostPattern): string {
  if (pattern.kind === 'internet') return 'internet';
  if (pattern.kind === 'name') return pattern.name;
  if (pattern.kind === 'subdomains') return `*.${pattern.name}`;
  return isSingleAddress(pattern) ? pattern.first.toString() : `${pattern.first.toString()}/${pattern.prefix}`;
}

/** Whether the pattern covers a requested host. Addresses are covered by networks and `internet` only: names are not resolved here. */
export function coversHost(pattern: HostPattern, host: Host): boolean {
  if (pattern.kind === 'internet') return true;
  if (host.kind === 'address') return containsAddress(pattern, host.address);
  if (pattern.kind === 'name') return host.name === pattern.name;
  return pattern.kind === 'subdomains' && host.name.endsWith(`.${pattern.name}`);
}

/** Whether the pattern is a network that contains the address. */
export function containsAddress(pattern: HostPattern, address: Address): boolean {
  if (pattern.kind !== 'network') return false;
  const plain = unmapped(address);
  if (plain instanceof ipaddr.IPv4) return pattern.first instanceof ipaddr.IPv4 && plain.match(pattern.first, pattern.prefix);
  return pattern.first instanceof ipaddr.IPv6 && plain.match(pattern.first, pattern.prefix);
}

/** Whether the pattern is for one address. */
export function isSingleAddress(pattern: HostPattern): boolean {
  return pattern.kind === 'network' && pattern.prefix === bits(pattern.first);
}

/** The first and the last address of a network; no address for another pattern. */
export function networkEnds(pattern: HostPattern): readonly Address[] {
  return pattern.kind === 'network' ? [pattern.first, end(pattern.first, pattern.prefix, 0xff)] : [];
}

/** The address with every bit behind the prefix set to those of `fill`. */
function end(address: Address, prefix: number, fill: 0 | 0xff): Address {
  return ipaddr.fromByteArray(
    address.toByteArray().map((byte, at) => {
      const mask = 0xff >> Math.min(8, Math.max(0, prefix - at * 8));
      return (byte & ~mask) | (fill & mask);
    }),
  );
}

function bits(address: Address): number {
  return address.kind() === 'ipv4' ? 32 : 128;
}
