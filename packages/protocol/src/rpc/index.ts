/** RPC servers and clients. Apart from the package's entry, since it loads Connect. */
export { rpcEdge, type EdgeOptions, type RpcEdge, type RpcRequest } from './edge.ts';
export { fromConnectError, knownError, peerError, publicError, publicErrorToWire, toConnectError, type ErrorLog } from './errors.ts';
