import { unmapped, type Address } from '@drover/spec/policy';
import ipaddr from 'ipaddr.js';

/**
 * Why a sandbox may not reach an address without a rule for it.
 * - `never`: no rule opens it. It is the host itself (its own addresses, loopback, the unspecified address) or not one peer
 *   (multicast, broadcast).
 * - `single`: only a rule that names this very address opens it: link-local, and the metadata services of cloud providers,
 *   which hand out the machine's own credentials.
 * - `range`: a rule for the address or for a network inside the same range opens it, such as 10.0.0.0/8.
 */
export interface Forbidden {
  readonly range: string;
  readonly opensBy: 'never' | 'single' | 'range';
}

/**
 * Metadata services outside the link-local range: EC2 over IPv6, Azure's platform address, Alibaba Cloud, Oracle Cloud.
 * Sources: each provider's documentation of its instance metadata service.
 */
const metadataAddresses: ReadonlySet<string> = new Set(['fd00:ec2::254', '168.63.129.16', '100.100.100.200', '192.0.0.192']);

const neverRanges: ReadonlySet<string> = new Set(['loopback', 'unspecified', 'multicast', 'broadcast']);

/**
 * Classifies an address; undefined for an ordinary public one (G-16).
 * The ranges are IANA's special-purpose registries as ipaddr.js knows them; only `unicast` is ordinary.
 * An IPv6 address that carries an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo) is judged by what it carries as well.
 * @param own the host's own addresses, which would reach its services
 */
export function forbiddenRange(address: Address, own: ReadonlySet<string>): Forbidden | undefined {
  const plain = unmapped(address);
  if (own.has(plain.toString())) return { range: "the host's own address", opensBy: 'never' };
  if (plain.toString() === '169.254.169.254' || metadataAddresses.has(plain.toString())) return { range: 'metadata', opensBy: 'single' };
  const range = plain.range();
  if (neverRanges.has(range)) return { range, opensBy: 'never' };
  if (range === 'linkLocal') return { range, opensBy: 'single' };
  if (plain instanceof ipaddr.IPv6) {
    const carried = carriedIPv4(plain);
    if (carried !== undefined) {
      const inner = forbiddenRange(carried, own);
      if (inner !== undefined) return { range: `${inner.range} in IPv6`, opensBy: inner.opensBy };
      // NAT64 of a public address is how IPv6-only hosts reach it; the other forms are no ordinary destinations whatever they carry.
      return plain.match(ipaddr.IPv6.parse('64:ff9b::'), 96) ? undefined : { range: 'IPv4 in IPv6', opensBy: 'range' };
    }
  }
  return range === 'unicast' ? undefined : { range, opensBy: 'range' };
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
