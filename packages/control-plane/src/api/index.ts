export { openAdminToken } from './auth.ts';
export type { ApiContext, SystemFacts } from './context.ts';
export { startApi, type ApiServer, type ServerIdentity } from './server.ts';
