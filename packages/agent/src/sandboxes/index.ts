export { SandboxManager, type SandboxManagerOptions } from './manager.ts';
export type { Sandboxes, SignSandboxCertificate } from './sandboxes.ts';
export { defaultStandbys } from './standbys.ts';
