export {
  CloseFailed,
  connectInit,
  tunnelConnector,
  type Connection,
  type Connector,
  type InitClient,
  type SessionCredentials,
} from './connect.ts';
export { SessionStream, StreamLost, type ResponseOf, type SessionEnd } from './stream.ts';
export { decide, judge, registryCheck, type Decision, type PeerVerdict, type Untrusted } from './trust.ts';
