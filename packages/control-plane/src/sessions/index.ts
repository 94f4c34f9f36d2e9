export type { InitClient, SessionCredentials } from './connection/index.ts';
export type { DialerStats } from './dialer.ts';
export { SessionManager, type SessionManagerOptions } from './manager.ts';
export { planSource, type PlanSource } from './plan/index.ts';
export { CrashBreaker } from './policy/index.ts';
export type { Sessions, SessionStatus } from './sessions.ts';
