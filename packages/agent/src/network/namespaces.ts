import { readdir, statfs } from 'node:fs/promises';
import { disableIPv6, interfaceNames } from '@drover/linux';
import { hostMac, sandboxMac, slotAddress, slotInterface, slotNamespace, type AddressPlan } from './addresses.ts';
import { command } from './commands.ts';
import { initPortRules } from './ruleset.ts';

/** The names of `ip netns` (ip-netns(8)). */
const directory = '/run/netns';

/** NSFS_MAGIC of linux/magic.h: a namespace is mounted on the name. */
const nsfsMagic = 0x6e_73_66_73;

export function namespacePath(plan: AddressPlan, slot: number): string {
  return `${directory}/${slotNamespace(plan, slot)}`;
}

/**
 * Makes a slot's namespace and the veth pair into it, with four processes in some 15 ms. Removes everything when it fails. The sandbox has its own
 * address and a route to the gateway's address only: connections to any other fail immediately.
 */
export async function createNamespace(plan: AddressPlan, slot: number): Promise<void> {
  const host = slotInterface(plan, slot);
  const name = slotNamespace(plan, slot);
  const address = slotAddress(plan, slot);
  try {
    await command(
      'ip',
      ['-batch', '-'],
      `netns add ${name}
link add ${host} address ${hostMac} type veth peer name eth0 address ${sandboxMac} netns ${name}
${hostEnd(plan, slot)}`,
    );
    // /proc/sys/net shows the namespace of the process that opens it. Without IPv6 in the kernel, or with a read-only /proc, this does nothing;
    // the firewall's rules drop IPv6 in any case. The loopback interface keeps ::1, which /etc/hosts names.
    const noIPv6 = 'for c in all=1 default=1 lo=0; do echo ${c#*=} > /proc/sys/net/ipv6/conf/${c%=*}/disable_ipv6; done 2> /dev/null';
    // Only the sandbox uses the namespace, and its user namespace has no privilege over it: every user may listen on low ports.
    const allPorts = 'echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start';
    await command(
      'nsenter',
      [`--net=${namespacePath(plan, slot)}`, 'sh', '-c', `${noIPv6}; ${allPorts}; nft '${initPortRules(address)}' && exec ip -batch -`],
      `link set lo up
link set eth0 arp off up
addr add ${address}/32 dev eth0
route add ${plan.gatewayAddress} dev eth0 src ${address}
neigh replace ${plan.gatewayAddress} lladdr ${hostMac} dev eth0 nud permanent
`,
    );
    disableIPv6(host);
  } catch (error) {
    await removeSlots(plan, [slot]).catch(() => undefined);
    throw error;
  }
}

/**
 * Restores the host's side of slots whose interfaces exist: the kernel removes a route when its interface goes down or its source, the gateway's
 * address, is removed. Idempotent.
 */
export async function restoreHostEnds(plan: AddressPlan, slots: readonly number[]): Promise<void> {
  if (slots.length === 0) return;
  // -force: continue with the other slots when one fails.
  await command('ip', ['-force', '-batch', '-'], slots.map((slot) => hostEnd(plan, slot)).join(''));
}

/** The host's side of a slot, as idempotent lines for `ip -batch`. */
function hostEnd(plan: AddressPlan, slot: number): string {
  const host = slotInterface(plan, slot);
  const address = slotAddress(plan, slot);
  return `link set ${host} arp off addrgenmode none up
route replace ${address}/32 dev ${host} src ${plan.gatewayAddress}
neigh replace ${address} lladdr ${sandboxMac} dev ${host} nud permanent
`;
}

/** Removes the interfaces and namespaces of slots, as far as they exist. */
export async function removeSlots(plan: AddressPlan, slots: readonly number[]): Promise<void> {
  if (slots.length === 0) return;
  const present = await presentSlots(plan);
  const lines = slots.flatMap((slot) => [
    // Deleting the pair stops all packets immediately. The namespace exists until its last process has ended.
    ...(present.interfaces.has(slot) ? [`link del ${slotInterface(plan, slot)}`] : []),
    ...(present.names.has(slot) ? [`netns del ${slotNamespace(plan, slot)}`] : []),
  ]);
  // -force: another process may have removed a part already. `checkRemoved` decides whether a failure matters.
  if (lines.length > 0)
    await command('ip', ['-force', '-batch', '-'], `${lines.join('\n')}\n`).catch((error: unknown) => checkRemoved(plan, slots, error));
}

async function checkRemoved(plan: AddressPlan, slots: readonly number[], error: unknown): Promise<void> {
  const left = await presentSlots(plan);
  if (slots.some((slot) => left.interfaces.has(slot) || left.names.has(slot))) throw error;
}

/** The slots that have an interface or a named namespace. */
export async function presentSlots(
  plan: AddressPlan,
): Promise<{ readonly interfaces: ReadonlySet<number>; readonly names: ReadonlySet<number> }> {
  // The directory is absent until a namespace is made after a boot.
  const names = await readdir(directory).catch(() => []);
  return { interfaces: slotsAmong(plan, interfaceNames()), names: slotsAmong(plan, names) };
}

function slotsAmong(plan: AddressPlan, names: readonly string[]): ReadonlySet<number> {
  return new Set(
    names.flatMap((name) => {
      const match = [plan.interfacePrefix, plan.namespacePrefix].find((prefix) => name.startsWith(prefix));
      const rest = match === undefined ? '' : name.slice(match.length);
      return /^\d{1,5}$/.test(rest) ? [Number(rest)] : [];
    }),
  );
}

/** Whether a process can join the namespace by its name. The name outlives its mount when the mount namespace that it was made in no longer exists. */
export async function isJoinable(plan: AddressPlan, slot: number): Promise<boolean> {
  try {
    return (await statfs(namespacePath(plan, slot))).type === nsfsMagic;
  } catch {
    return false;
  }
}
