/** RPC servers and clients. Separate from the entry of the package, since it loads Connect. */
export { rpcEdge, type EdgeOptions, type RpcEdge, type RpcRequest } from './edge.ts';
export { fromConnectError, knownError, peerError, publicError, publicErrorToWire, toConnectError, type ErrorLog } from './errors.ts';
