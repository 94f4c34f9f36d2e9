import { readdir, statfs } from 'node:fs/promises';
import { disableIPv6, interfaceNames } from '@drover/linux';
import { hostMac, sandboxMac, slotAddress, slotInterface, slotNamespace, type AddressPlan } from './addresses.ts';
import { command } from './commands.ts';
import { initPortRules } from './ruleset.ts';

/** Where `ip netns` keeps names (ip-netns(8)). */
const directory = '/run/netns';

/** NSFS_MAGIC of linux/magic.h: a name with a namespace mounted on it. */
const nsfsMagic = 0x6e_73_66_73;

export function namespacePath(plan: AddressPlan, slot: number): string {
  return `${directory}/${slotNamespace(plan, slot)}`;
}

/**
 * Makes a slot's namespace and the veth pair into it: four processes, some 15 ms. Nothing is left when it fails.
 * The sandbox has its own address, a route to the gateway's and no other: what it may not reach is unreachable at once.
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
    // /proc/sys/net shows the namespace of whoever opens it. Where the kernel has no IPv6 or /proc is read-only there is
    // nothing to switch off or no way to; the rules drop IPv6 in any case. The loopback interface keeps ::1, which /etc/hosts names.
    const noIPv6 = 'for c in all=1 default=1 lo=0; do echo ${c#*=} > /proc/sys/net/ipv6/conf/${c%=*}/disable_ipv6; done 2> /dev/null';
    // A namespace of the sandbox's own: low ports in it are nobody's privilege, and user namespaces give none over it.
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
 * Restores what the host needs to reach slots whose interfaces exist: the kernel removes a route when its interface goes down or when its
 * source, the gateway's address, goes. Changes nothing where nothing is missing.
 */
export async function restoreHostEnds(plan: AddressPlan, slots: readonly number[]): Promise<void> {
  if (slots.length === 0) return;
  // -force: a slot that fails does not keep the others from being restored.
  await command('ip', ['-force', '-batch', '-'], slots.map((slot) => hostEnd(plan, slot)).join(''));
}

/** The host's side of a slot, in lines for `ip -batch` that can be repeated. */
function hostEnd(plan: AddressPlan, slot: number): string {
  const host = slotInterface(plan, slot);
  const address = slotAddress(plan, slot);
  return `link set ${host} arp off addrgenmode none up
route replace ${address}/32 dev ${host} src ${plan.gatewayAddress}
neigh replace ${address} lladdr ${sandboxMac} dev ${host} nud permanent
`;
}

/** Takes the interfaces and namespaces of slots away, whichever of them are there. */
export async function removeSlots(plan: AddressPlan, slots: readonly number[]): Promise<void> {
  if (slots.length === 0) return;
  const there = await presentSlots(plan);
  const lines = slots.flatMap((slot) => [
    // The pair goes at once and with it the last packet; the namespace itself when its last process has gone.
    ...(there.interfaces.has(slot) ? [`link del ${slotInterface(plan, slot)}`] : []),
    ...(there.names.has(slot) ? [`netns del ${slotNamespace(plan, slot)}`] : []),
  ]);
  // -force: a line that fails because somebody was quicker does not keep the others from being done; what is left is looked at below.
  if (lines.length > 0)
    await command('ip', ['-force', '-batch', '-'], `${lines.join('\n')}\n`).catch((error: unknown) => checkGone(plan, slots, error));
}

async function checkGone(plan: AddressPlan, slots: readonly number[], error: unknown): Promise<void> {
  const left = await presentSlots(plan);
  if (slots.some((slot) => left.interfaces.has(slot) || left.names.has(slot))) throw error;
}

/** The slots that have something in the kernel: host ends, and names of namespaces. */
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

/** Can a process still join the namespace by its name? A name outlives its mount when the mount namespace it was made in is gone. */
export async function isJoinable(plan: AddressPlan, slot: number): Promise<boolean> {
  try {
    return (await statfs(namespacePath(plan, slot))).type === nsfsMagic;
  } catch {
    return false;
  }
}
