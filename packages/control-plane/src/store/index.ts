export { containmentsOf, containmentText, mayNotRun, refuseContained } from './containment.ts';
export { labelOf } from './label.ts';
export { openStore, type StoreOptions } from './open.ts';
export { hasEnded } from './end.ts';
export { currentStart, hostState, runIsOver, sandboxState, startOf, type DisplayedState, type StateColumns } from './state.ts';
export { containmentActions } from './store.ts';
export type * from './store.ts';
