export type { CreateRequest, Limits, NetworkAttachment, Runtime, RuntimeFinding, RuntimeState, RuntimeStats } from './runtime.ts';
export { FakeRuntime, FakeState, type FakeOperation, type FakeOutcome, type FakeRuntimeOptions } from './fake/index.ts';
export { OciRuntime, prepareInitDirectory, type InitDirectoryOptions, type OciRuntimeOptions } from './oci/index.ts';
