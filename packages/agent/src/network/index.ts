/** The host's sandbox network (spec 5.4), and the gateway process at its edge. */
export { checkPool, defaultPool, gatewayAddressOf, instanceTag } from './addresses.ts';
export { ControlListener, type ControlListenerOptions } from './control-listener.ts';
export { checkGateway } from './gateway-check.ts';
export { HostGateway, type HostGatewayOptions } from './host-gateway.ts';
export type { AddressHolder, Network, NetworkAttachment, SandboxAddresses } from './network.ts';
export type { ApplyGateway } from './policy-publisher.ts';
export { proxyEnvironment } from './proxy-environment.ts';
export { SandboxNetwork, type SandboxNetworkOptions } from './sandbox-network.ts';
