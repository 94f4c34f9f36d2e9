export { prepareInitDirectory, type InitDirectoryOptions } from './init-directory.ts';
export { OciRuntime, type OciRuntimeOptions } from './oci-runtime.ts';
