import { initPort } from '@drover/init';
import { slotAddress, slotInterface, type AddressPlan } from './addresses.ts';

/** The listeners on the gateway's address. */
export interface HostPorts {
  readonly proxyPort: number;
  readonly controlPort: number;
}

/**
 * The nftables table of one agent, as a script that puts it in force in one transaction, replacing an earlier one (R-16).
 *
 * It names interfaces by prefix and every slot's address, so that a new sandbox needs no new rule: its interface never exists without the rules. A
 * verdict `drop` of any table is final, so other users of nftables and iptables (docker, ufw) can only forbid more.
 *
 * From a sandbox: TCP to the proxy and to the control listener on the gateway's address, and replies to connections that the host
 * opened (init's port, forwarded ports). The former are not tracked: a sandbox cannot fill the host's connection table.
 *
 * A sandbox that is cut keeps the control listener and the replies from init's port, so that the control plane still reaches it (I-4). These rules
 * match packets and not connections, so they also stop connections from before the cut.
 * @param cut interfaces that are cut off, both ways
 * @param unregistered interfaces whose sandbox cannot reach the control listener: its identity is revoked
 */
export function ruleset(
  plan: AddressPlan,
  { proxyPort, controlPort }: HostPorts,
  cut: readonly string[],
  unregistered: readonly string[],
): string {
  const sandboxes = `"${plan.interfacePrefix}*"`;
  const members = Array.from({ length: plan.slots }, (_, slot) => `"${slotInterface(plan, slot)}" . ${slotAddress(plan, slot)}`);
  const toProxy = `ip daddr ${plan.gatewayAddress} tcp dport ${proxyPort}`;
  const toControl = `ip daddr ${plan.gatewayAddress} tcp dport ${controlPort}`;
  return `
table inet ${plan.table} {}
delete table inet ${plan.table}
table inet ${plan.table} {
  set members {
    type ifname . ipv4_addr
    elements = { ${members.join(', ')} }
  }
  set cut {
    type ifname
    ${elements(cut)}
  }
  set unregistered {
    type ifname
    ${elements(unregistered)}
  }
  chain raw {
    type filter hook prerouting priority raw; policy accept;
    iifname ${sandboxes} jump from_sandbox
    # Other networks do not reach the proxy or a sandbox through this host.
    iifname != "lo" ip daddr ${plan.pool} drop
  }
  chain from_sandbox {
    meta nfproto != ipv4 drop
    # Each interface speaks for its own address only.
    iifname . ip saddr != @members drop
    ip daddr != ${plan.gatewayAddress} drop
    iifname @unregistered ${toControl} drop
    ${toControl} notrack accept
    iifname @cut goto from_cut
    ${toProxy} notrack accept
    # The rest may be replies; tracked decides.
    accept
  }
  chain from_cut {
    # Init's port as the source does not open the way to the proxy.
    ${toProxy} drop
    tcp sport ${initPort} accept
    drop
  }
  chain tracked {
    # After connection tracking (-200), before NAT (-100).
    type filter hook prerouting priority mangle; policy accept;
    iifname != ${sandboxes} accept
    ${toProxy} accept
    ${toControl} accept
    ct direction reply ct state established accept
    drop
  }
  chain input {
    # Again, in case other tables have rewritten the packet.
    type filter hook input priority raw; policy accept;
    iifname != ${sandboxes} accept
    ${toProxy} accept
    ${toControl} accept
    ct direction reply ct state established accept
    drop
  }
  chain forward {
    type filter hook forward priority raw; policy accept;
    iifname ${sandboxes} drop
    oifname ${sandboxes} drop
  }
  chain output {
    type filter hook output priority raw; policy accept;
    # A sandbox is reached by its own interface only: without its route, a packet to it would leave by the host's default route.
    oifname != "lo" oifname != ${sandboxes} ip daddr ${plan.pool} reject
    oifname != ${sandboxes} accept
    meta nfproto != ipv4 drop
    # I-3: the agent's tunnels reach init, the gateway's user does not, whatever a policy allows it.
    tcp dport ${initPort} meta skuid != 0 drop
    ip saddr ${plan.gatewayAddress} tcp sport ${controlPort} notrack accept
    oifname @cut goto to_cut
    ip saddr ${plan.gatewayAddress} tcp sport ${proxyPort} notrack accept
    # R-16: the gateway's user replies to its clients and opens no connection to a sandbox; otherwise a rule for 10.0.0.0/8 would join sandboxes.
    meta skuid != 0 reject
  }
  chain to_cut {
    ip saddr ${plan.gatewayAddress} tcp sport ${proxyPort} drop
    tcp dport ${initPort} accept
    drop
  }
}
`;
}

function elements(interfaces: readonly string[]): string {
  return interfaces.length === 0 ? '' : `elements = { ${interfaces.map((name) => `"${name}"`).join(', ')} }`;
}

/**
 * The rules inside a sandbox's namespace: only the host reaches init's port. The workload's own connections to it never leave the namespace, so the
 * host's table does not see them. No process in the sandbox has a capability over the namespace, which the host made.
 */
export function initPortRules(address: string): string {
  return `table inet drover {
  chain input {
    type filter hook input priority raw; policy accept;
    iifname "lo" ip daddr ${address} tcp dport ${initPort} reject with tcp reset
  }
}`;
}
