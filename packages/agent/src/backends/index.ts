export * from './backend.ts';
export { defaultStandbys } from './standby-demand.ts';
export { checkBackends, openBackends, type BackendOptions } from './table.ts';
