export { containmentsOf, containmentText, mayNotRun, refuseContained, restartHint } from './containment.ts';
export { endReason, hasEnded, type EndReason } from './end.ts';
export { hostState, type HostRow, type Room } from './host.ts';
export type * from './identity.ts';
export { containmentActions, labelOf } from './sandbox.ts';
export type * from './sandbox.ts';
export { currentStart, runIsOver, sandboxState, startOf, type DisplayedState, type StateColumns } from './state.ts';
export type { VolumeRow } from './volume.ts';
