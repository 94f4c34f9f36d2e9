export type { CreateRequest, Limits, NetworkAttachment, Runtime, RuntimeFinding, RuntimeState, RuntimeStats } from './runtime.ts';
export { OciRuntime, prepareInitDirectory, type InitDirectoryOptions, type OciRuntimeOptions } from './oci/index.ts';
