export type * from './drafts.ts';
export type { EventStore } from './event-store.ts';
export type { HostStore } from './hosts.ts';
export type { IdentityStore } from './identities.ts';
export { openStore, type StoreOptions } from './open.ts';
export type { SandboxStore } from './sandboxes.ts';
export type { Store } from './store.ts';
export type { Tables } from './tables.ts';
export type { TokenStore } from './tokens.ts';
