/** The session's client, for tests that put a hostile peer at its other end. */
export { connectInit, type SessionCredentials } from '../connection/connect.ts';
