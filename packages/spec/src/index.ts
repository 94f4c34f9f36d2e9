/**
 * What a person can ask of Drover. Every input has one parser, which returns a type that holds no invalid value; the processes exchange
 * those types. Parsers that need a library are entries beside this one, so that a command loads only what it uses.
 */
export {
  parseArguments,
  parseEnvironment,
  parseUser,
  parseVariableName,
  parseWorkdir,
  type EnvironmentVariable,
  type User,
  type Workdir,
} from './command.ts';
export { formatDuration, parseDurationMs, parseDurationWithin } from './durations.ts';
export {
  absoluteImageReference,
  formatImageReference,
  isDigest,
  isRegistry,
  parseImageReference,
  parseRegistryReference,
  type ArchiveReference,
  type DirectoryReference,
  type ImageReference,
  type RegistryReference,
} from './image-reference.ts';
export { parseLabel, parseLabels, type Labels } from './labels.ts';
export * from './limits.ts';
export { parseMount, parseMountFlag, type Mount, type MountInput } from './mounts.ts';
export {
  parseExecId,
  parseHostName,
  parseHostname,
  parseRuntimeName,
  parseSecretName,
  runtimeNames,
  type ExecId,
  type Hostname,
  type RuntimeName,
  type SecretTarget,
} from './names.ts';
export { isPort, parsePort } from './ports.ts';
export { parseSignal, signalExitCode, signalName } from './signals.ts';
export { parseBytes, parseCount, parseCpus } from './sizes.ts';
