/** The server of InitService for one peer. It loads no library of gRPC: those are loaded after init listens. */
export type { AnyHandler, Call, Handlers, Reply } from './call.ts';
export { createStrictServer, uriNames, type ServerIdentity } from './tls.ts';
