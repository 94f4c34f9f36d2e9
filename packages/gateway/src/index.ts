/** What may leave a sandbox: the policy language, the egress proxy, and the program around them. */
export { GatewayClient, type GatewayHealth, type GatewayRefusal } from './control/index.ts';
export { EgressProxy, type Decision, type EgressProxyOptions, type EgressStats, type ListenOn, type Resolve } from './egress/index.ts';
export { gatewayIdentityFile } from './gateway.ts';
export { relayLogLine } from './log.ts';
export { PolicyTable, type SandboxPolicy } from './policy/index.ts';
