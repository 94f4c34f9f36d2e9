export { changesIdentity } from './evictions.ts';
export { joinHost } from './join.ts';
export type * from './claims.ts';
export { answerSigningRequest, type SigningDependencies } from './signing.ts';
export { Registry, type RegistryOptions } from './registry.ts';
