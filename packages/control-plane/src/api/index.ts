export { openAdminToken } from './edge/index.ts';
export type { ApiContext, SystemFacts } from './edge/index.ts';
export { startApi, type ApiServer, type ServerIdentity } from './server.ts';
