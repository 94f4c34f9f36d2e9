import ipaddr from 'ipaddr.js';
import { unmapped } from './host.ts';

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/**
 * Why an address is no place for a sandbox to reach, or undefined when it is an ordinary public one (G-16).
 * The ranges are IANA's special-purpose registries as ipaddr.js knows them; only `unicast` is ordinary.
 * An IPv6 address that carries an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo) is judged by what it carries as well.
 * @param own the host's own addresses, which would reach its services
 */
export function forbiddenRange(address: Address, own: ReadonlySet<string>): string | undefined {
  const plain = unmapped(address);
  if (own.has(plain.toString())) return "the host's own address";
  const range = plain.range();
  if (plain instanceof ipaddr.IPv4) {
    if (plain.toString() === '169.254.169.254') return 'metadata';
    return range === 'unicast' ? undefined : range;
  }
  const carried = carriedIPv4(plain);
  if (carried !== undefined) {
    const inner = forbiddenRange(carried, own);
    if (inner !== undefined) return `${inner} in IPv6`;
    // NAT64 of a public address is how IPv6-only hosts reach it; the other forms are no ordinary destinations whatever they carry.
    return plain.match(ipaddr.IPv6.parse('64:ff9b::'), 96) ? undefined : 'IPv4 in IPv6';
  }
  return range === 'unicast' ? undefined : range;
}

/** The IPv4 address inside an IPv6 one: ::/96, 64:ff9b::/96 and 64:ff9b:1::/48 (RFC 6052, 8215), 2002::/16 (RFC 3056), 2001::/32 (RFC 4380). */
function carriedIPv4(address: ipaddr.IPv6): ipaddr.IPv4 | undefined {
  const bytes = address.toByteArray();
  const at = (start: number, flip = 0): ipaddr.IPv4 => new ipaddr.IPv4(bytes.slice(start, start + 4).map((b) => b ^ flip));
  const inside = (network: string, prefix: number): boolean => address.match(ipaddr.IPv6.parse(network), prefix);
  if (inside('::', 96) || inside('64:ff9b::', 96) || inside('64:ff9b:1::', 48)) return at(12);
  if (inside('2002::', 16)) return at(2);
  if (inside('2001::', 32)) return at(12, 0xff);
  return undefined;
}
