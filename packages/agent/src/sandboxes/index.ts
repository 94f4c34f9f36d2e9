export { SandboxManager, type SandboxManagerOptions } from './manager.ts';
export type * from './sandboxes.ts';
