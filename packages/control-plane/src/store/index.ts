export { openStore, type StoreOptions } from './open.ts';
export { hasEnded, hostState, runIsOver, sandboxState, startOf, type DisplayedState, type StateColumns } from './state.ts';
export type * from './store.ts';
