export { Backoff, type BackoffOptions } from './backoff.ts';
export { certificateDatesError } from './certificate-dates.ts';
export { FakeClock, systemClock, type Clock } from './clock.ts';
export {
  DroverError,
  errnoOf,
  errorCodes,
  GrpcStatus,
  hasCode,
  isErrorCode,
  reasonOf,
  startFailure,
  type DroverErrorOptions,
  type ErrorCode,
} from './errors.ts';
export { KeyedExecutor, SerialExecutor } from './executors.ts';
export { FileRecords, type FileRecordsOptions } from './file-records.ts';
export { directoryProblem, makeDirectories, makeDirectoriesSync, prepareDirectory, removeTree } from './directories.ts';
export { readAtMost, writeFileAtomic } from './files.ts';
export { limitHandshakes } from './handshakes.ts';
export {
  clip,
  isHostId,
  isSandboxId,
  newHostId,
  newId,
  newSandboxId,
  parseHostId,
  parseSandboxId,
  type Branded,
  type HostId,
  type SandboxId,
} from './ids.ts';
export { lockDirectory } from './lock.ts';
// What makes one is @drover/foundation/log: a command that logs nothing does not load it.
export type { Logger, LogOptions } from './log.ts';
export {
  canonicalCommonName,
  makeUpName,
  maxNameLength,
  maxProjectLength,
  parseName,
  parseProject,
  type Name,
  type Project,
} from './names.ts';
export { Notifier } from './notifier.ts';
export { BoundedQueue } from './queue.ts';
export { counted, formatAge, formatBytes } from './units.ts';
export { version } from './version.ts';
export { abortable, after, inTime, withDeadline } from './waiting.ts';
