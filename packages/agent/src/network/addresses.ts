import { createHash } from 'node:crypto';
import { clip, DroverError } from '@drover/foundation';
import ipaddr from 'ipaddr.js';
import { networkSlots } from '../limits.ts';

/**
 * The numbers and names of one agent's network. A slot determines the address, interface and namespace of its sandbox, so that rules can name them
 * before they exist.
 */
export interface AddressPlan {
  readonly instance: string;
  readonly pool: string;
  /** The host's end for every sandbox; the egress proxy listens there. */
  readonly gatewayAddress: string;
  /** The number of sandboxes at most. */
  readonly slots: number;
  readonly table: string;
  /** A veth pair carries the gateway's address, since sandboxes need that kind of interface anyway. */
  readonly gatewayInterface: string;
  readonly gatewayPeer: string;
  /** The prefix of all host ends, of this instance only. */
  readonly interfacePrefix: string;
  readonly namespacePrefix: string;
}

/** The MAC address of every host end, and that of every sandbox: no two pairs share a link. */
export const hostMac = '02:d0:5e:00:00:01';
export const sandboxMac = '02:d0:5e:00:00:02';

export const defaultPool = '10.213.0.0/16';

/**
 * @param instance 1 to 8 lower-case letters and digits; interface names have 15 characters in all (IFNAMSIZ)
 * @param pool an IPv4 network, /8 to /29
 * @throws {DroverError} invalid-config
 */
export function planAddresses(instance: string, pool: string): AddressPlan {
  if (!/^[a-z0-9]{1,8}$/.test(instance)) {
    throw new DroverError('invalid-config', `${JSON.stringify(instance)} cannot name this agent's interfaces`, {
      hint: 'use 1 to 8 lower-case letters and digits',
    });
  }
  const { network, prefix } = checkPool(pool);
  return {
    instance,
    pool: `${network.toString()}/${prefix}`,
    gatewayAddress: offset(network, 1),
    // Without the network's first address, the gateway's, and the broadcast address.
    slots: Math.min(networkSlots, 2 ** (32 - prefix) - 3),
    table: `drover-${instance}`,
    gatewayInterface: `d${instance}g`,
    gatewayPeer: `d${instance}p`,
    interfacePrefix: `d${instance}-`,
    namespacePrefix: `drover-${instance}-`,
  };
}

/** The first address of a pool, which the egress proxy and the control listener listen on. @throws {DroverError} invalid-config */
export function gatewayAddressOf(pool: string): string {
  return offset(checkPool(pool).network, 1);
}

/**
 * Parses a pool.
 * @param pool an IPv4 network, /8 to /29
 * @throws {DroverError} invalid-config
 */
export function checkPool(pool: string): { readonly network: ipaddr.IPv4; readonly prefix: number } {
  const bad = new DroverError('invalid-config', `${JSON.stringify(clip(pool))} is no address pool for sandboxes`, {
    hint: `name an IPv4 network from /8 to /29 by its first address, such as ${defaultPool}`,
  });
  if (!ipaddr.IPv4.isValidCIDR(pool)) throw bad;
  const [network, prefix] = ipaddr.IPv4.parseCIDR(pool);
  if (prefix < 8 || prefix > 29 || ipaddr.IPv4.networkAddressFromCIDR(pool).toString() !== network.toString()) throw bad;
  return { network, prefix };
}

/** A short tag for an agent, from its host id: 8 characters, the same for the same id. */
export function instanceTag(hostId: string): string {
  return createHash('sha256').update(hostId).digest('hex').slice(0, 8);
}

export function slotAddress(plan: AddressPlan, slot: number): string {
  return offset(ipaddr.IPv4.parseCIDR(plan.pool)[0], 2 + slot);
}

/** The slot of an address. Undefined: not an address of a sandbox. */
export function addressSlot(plan: AddressPlan, address: string): number | undefined {
  if (!ipaddr.IPv4.isValidFourPartDecimal(address)) return undefined;
  const slot = numberOf(ipaddr.IPv4.parse(address)) - numberOf(ipaddr.IPv4.parseCIDR(plan.pool)[0]) - 2;
  return slot >= 0 && slot < plan.slots ? slot : undefined;
}

export function slotInterface(plan: AddressPlan, slot: number): string {
  return `${plan.interfacePrefix}${slot}`;
}

export function slotNamespace(plan: AddressPlan, slot: number): string {
  return `${plan.namespacePrefix}${slot}`;
}

function numberOf(address: ipaddr.IPv4): number {
  return address.toByteArray().reduce((sum, byte) => sum * 256 + byte, 0);
}

function offset(network: ipaddr.IPv4, by: number): string {
  const number = numberOf(network) + by;
  return [24, 16, 8, 0].map((shift) => Math.floor(number / 2 ** shift) % 256).join('.');
}
