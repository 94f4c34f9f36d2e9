export { connectInit, type Connection, type PeerVerdict, type SessionCredentials } from './connect.ts';
export { SessionManager, type SessionManagerOptions } from './manager.ts';
export type { InitClient, Sessions, SessionStatus } from './sessions.ts';
