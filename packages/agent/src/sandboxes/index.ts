export { SandboxManager, type SandboxManagerOptions } from './manager.ts';
export type * from './sandboxes.ts';
export { receiveSpec, type ReceivedSpec } from './received-spec.ts';
