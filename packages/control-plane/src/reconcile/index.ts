export { drainHost, type DrainOptions, type DrainProgress } from './drain.ts';
export { Reconciler, type ReconcilerOptions } from './reconciler.ts';
export { Upkeep, type UpkeepOptions } from './upkeep.ts';
