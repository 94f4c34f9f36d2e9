export { callerOf, openAdminToken } from './authentication.ts';
export { limitConnections } from './connections.ts';
export type { ApiContext, SystemFacts } from './context.ts';
export { apiEdge } from './edge.ts';
export { once } from './idempotency.ts';
export { StreamInput } from './stream-input.ts';
