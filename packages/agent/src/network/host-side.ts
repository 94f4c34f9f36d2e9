import { networkInterfaces } from 'node:os';
import { DroverError } from '@drover/foundation';
import { interfaceNames } from '@drover/linux';
import ipaddr from 'ipaddr.js';
import { slotInterface, type AddressPlan } from './addresses.ts';
import { command } from './commands.ts';
import { ruleset, type HostPorts } from './ruleset.ts';

/**
 * Puts the rules in force, then makes the interface that carries the gateway's address, unless an earlier agent left it.
 * @throws {DroverError} invalid-config when another interface uses the pool; missing-component; missing-privilege
 */
export async function setUpHost(plan: AddressPlan, ports: HostPorts, slots: Readonly<Record<SlotSet, readonly number[]>>): Promise<void> {
  checkPoolIsFree(plan);
  const interfaces = (set: SlotSet): readonly string[] => slots[set].map((slot) => slotInterface(plan, slot));
  await command('nft', ['-f', '-'], ruleset(plan, ports, interfaces('cut'), interfaces('unregistered')));
  const up = `link set ${plan.gatewayPeer} arp off addrgenmode none up
link set ${plan.gatewayInterface} arp off addrgenmode none up
`;
  if (networkInterfaces()[plan.gatewayInterface]?.some((a) => a.address === plan.gatewayAddress)) {
    await command('ip', ['-batch', '-'], up);
    return;
  }
  if (await exists(plan)) await command('ip', ['link', 'del', plan.gatewayInterface]);
  await command(
    'ip',
    ['-batch', '-'],
    `link add ${plan.gatewayInterface} type veth peer name ${plan.gatewayPeer}
${up}addr add ${plan.gatewayAddress}/32 dev ${plan.gatewayInterface}
`,
  );
}

/** Removes the rules and the gateway's interface from a host without sandboxes. */
export async function tearDownHost(plan: AddressPlan): Promise<void> {
  if (await exists(plan)) await command('ip', ['link', 'del', plan.gatewayInterface]);
  await command('nft', ['-f', '-'], `table inet ${plan.table} {}\ndelete table inet ${plan.table}\n`);
}

/** The sets of interfaces that a containment fills (I-4). */
export type SlotSet = 'cut' | 'unregistered';

/** Adds a slot to a set or removes it; either may be repeated. In force when it resolves (I-4). */
export async function setSlot(plan: AddressPlan, set: SlotSet, slot: number, member: boolean): Promise<void> {
  const element = `element inet ${plan.table} ${set} { "${slotInterface(plan, slot)}" }`;
  // Deleting an absent element is an error, adding an existing one is not: add, then delete, in one transaction.
  await command('nft', ['-f', '-'], member ? `add ${element}\n` : `add ${element}\ndelete ${element}\n`);
}

async function exists(plan: AddressPlan): Promise<boolean> {
  return interfaceNames().includes(plan.gatewayInterface);
}

/** Two agents, or an agent and another network, on the same addresses would receive each other's packets. */
function checkPoolIsFree(plan: AddressPlan): void {
  const pool = ipaddr.IPv4.parseCIDR(plan.pool);
  for (const [name, addresses] of Object.entries(networkInterfaces())) {
    if (name === plan.gatewayInterface) continue;
    const taken = addresses?.find((a) => a.family === 'IPv4' && ipaddr.IPv4.parse(a.address).match(pool));
    if (taken === undefined) continue;
    throw new DroverError('invalid-config', `the sandboxes' address pool ${plan.pool} is in use: ${name} has ${taken.address}`, {
      hint: 'give this agent another pool, such as --pool 10.214.0.0/16',
    });
  }
}
