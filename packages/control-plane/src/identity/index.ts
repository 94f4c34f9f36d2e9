export { changesIdentity } from './evictions.ts';
export { joinHost } from './join.ts';
export type * from './registry.ts';
export { answerSigningRequest, type SigningDependencies } from './signing.ts';
export { SqlRegistry, type RegistryOptions } from './sql-registry.ts';
