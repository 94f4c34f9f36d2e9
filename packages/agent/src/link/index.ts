export { AgentLink, type AgentLinkOptions } from './agent-link.ts';
export type { HostDescription, HostInfo, HostLoad } from './host-info.ts';
export { CredentialsStore, ensureHostId, forgetIdentity, loadIdentity, saveIdentity, type HostIdentity } from './identity.ts';
export { checkOtherControlPlane, joinHost, type JoinOptions } from './join.ts';
