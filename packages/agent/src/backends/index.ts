export * from './backend.ts';
export { defaultStandbys } from './standby-demand.ts';
export { checkBackends, openBackends } from './table.ts';
