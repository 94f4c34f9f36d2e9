export { openStore, type StoreOptions } from './open.ts';
export { hasEnded, hostState, runIsOver, sandboxState, type DisplayedState, type StateColumns } from './state.ts';
export type * from './store.ts';
