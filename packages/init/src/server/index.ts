/** The server of InitService for one peer. It does not import gRPC libraries, which are loaded after init listens. */
export type { AnyHandler, Call, Handlers, Reply } from './call.ts';
export { createStrictServer, uriNames, type ServerIdentity } from './tls.ts';
