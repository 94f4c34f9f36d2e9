export type { SessionCredentials } from './connect.ts';
export { CrashBreaker } from './crash-breaker.ts';
export type { DialerStats } from './dialer.ts';
export { SessionManager, type SessionManagerOptions } from './manager.ts';
export { planSource, type PlanSource } from './plan.ts';
export type { InitClient, Sessions, SessionStatus } from './sessions.ts';
