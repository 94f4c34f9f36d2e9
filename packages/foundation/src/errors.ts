/**
 * The error class for everything that a person or a peer sees, and the table of its codes. A code is stable: programs match on it, the CLI
 * maps it to an exit code, and every API to a gRPC status.
 */
import { getSystemErrorMap } from 'node:util';

/** gRPC status numbers (https://grpc.io/docs/guides/status-codes/), equal to Connect's. */
export const GrpcStatus = {
  cancelled: 1,
  unknown: 2,
  invalidArgument: 3,
  deadlineExceeded: 4,
  notFound: 5,
  alreadyExists: 6,
  permissionDenied: 7,
  resourceExhausted: 8,
  failedPrecondition: 9,
  aborted: 10,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
  unauthenticated: 16,
} as const;
export type GrpcStatus = (typeof GrpcStatus)[keyof typeof GrpcStatus];

interface CodeEntry {
  readonly status: GrpcStatus;
  /** The exit code of the CLI. Where a command's own status is passed through, 125 stands for a failure of Drover, as with docker run. */
  readonly exit: number;
  /** The same request may succeed later, without an action of a person. */
  readonly transient: boolean;
}

const entry = (status: GrpcStatus, exit: number, transient = false): CodeEntry => ({ status, exit, transient });

/** All codes. Exit codes: 2 usage, 3 not found, 4 conflict, 5 denied, 6 unavailable, 7 no room, 8 timed out, 1 the rest. */
export const errorCodes = {
  'invalid-argument': entry(GrpcStatus.invalidArgument, 2),
  'invalid-name': entry(GrpcStatus.invalidArgument, 2),
  'invalid-image-reference': entry(GrpcStatus.invalidArgument, 2),
  'invalid-config': entry(GrpcStatus.invalidArgument, 2),
  'idempotency-key-reused': entry(GrpcStatus.invalidArgument, 2),
  'protocol-violation': entry(GrpcStatus.invalidArgument, 1),
  'sandbox-not-found': entry(GrpcStatus.notFound, 3),
  'host-not-found': entry(GrpcStatus.notFound, 3),
  'image-not-found': entry(GrpcStatus.notFound, 3),
  'volume-not-found': entry(GrpcStatus.notFound, 3),
  'context-not-found': entry(GrpcStatus.notFound, 3),
  'exec-not-found': entry(GrpcStatus.notFound, 3),
  'path-not-found': entry(GrpcStatus.notFound, 3),
  'name-taken': entry(GrpcStatus.alreadyExists, 4),
  'sandbox-not-running': entry(GrpcStatus.failedPrecondition, 4),
  'failed-precondition': entry(GrpcStatus.failedPrecondition, 4),
  'copy-incomplete': entry(GrpcStatus.failedPrecondition, 1),
  'image-in-use': entry(GrpcStatus.failedPrecondition, 4),
  'volume-in-use': entry(GrpcStatus.failedPrecondition, 4),
  'host-not-empty': entry(GrpcStatus.failedPrecondition, 4),
  'missing-privilege': entry(GrpcStatus.failedPrecondition, 5),
  'missing-component': entry(GrpcStatus.failedPrecondition, 6),
  unauthenticated: entry(GrpcStatus.unauthenticated, 5),
  'permission-denied': entry(GrpcStatus.permissionDenied, 5),
  'join-refused': entry(GrpcStatus.permissionDenied, 5),
  'ca-mismatch': entry(GrpcStatus.permissionDenied, 5),
  'host-removed': entry(GrpcStatus.permissionDenied, 5),
  'host-unavailable': entry(GrpcStatus.unavailable, 6, true),
  'session-unavailable': entry(GrpcStatus.unavailable, 6, true),
  'registry-unreachable': entry(GrpcStatus.unavailable, 6, true),
  'registry-denied': entry(GrpcStatus.permissionDenied, 5),
  'control-plane-unreachable': entry(GrpcStatus.unavailable, 6, true),
  unavailable: entry(GrpcStatus.unavailable, 6, true),
  'port-in-use': entry(GrpcStatus.failedPrecondition, 6),
  'disk-full': entry(GrpcStatus.resourceExhausted, 7),
  unschedulable: entry(GrpcStatus.resourceExhausted, 7, true),
  'too-large': entry(GrpcStatus.resourceExhausted, 7),
  'queue-full': entry(GrpcStatus.resourceExhausted, 7, true),
  'no-room': entry(GrpcStatus.resourceExhausted, 7, true),
  'corrupt-image': entry(GrpcStatus.failedPrecondition, 1),
  'unsafe-archive': entry(GrpcStatus.failedPrecondition, 1),
  'runtime-failed': entry(GrpcStatus.internal, 1),
  'command-not-found': entry(GrpcStatus.failedPrecondition, 127),
  'command-not-executable': entry(GrpcStatus.failedPrecondition, 126),
  'timed-out': entry(GrpcStatus.deadlineExceeded, 8, true),
  cancelled: entry(GrpcStatus.cancelled, 130),
  unimplemented: entry(GrpcStatus.unimplemented, 1),
  conflict: entry(GrpcStatus.aborted, 4, true),
  internal: entry(GrpcStatus.internal, 1),
} as const satisfies Record<string, CodeEntry>;

export type ErrorCode = keyof typeof errorCodes;

export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(errorCodes, text);
}

export interface DroverErrorOptions {
  /** What a person can do next; one clause. */
  readonly hint?: string;
  readonly cause?: unknown;
}

/** Marks a DroverError of any copy of this package: a program may load several, as with a published SDK. */
const brand = Symbol.for('drover.DroverError');

/** What went wrong, to what, and what to do: the only error that leaves a process. */
export class DroverError extends Error {
  static override [Symbol.hasInstance](value: unknown): boolean {
    // A subclass matches its own instances only.
    if (this !== DroverError) return Function.prototype[Symbol.hasInstance].call(this, value);
    return typeof value === 'object' && value !== null && brand in value;
  }

  static {
    Object.defineProperty(this.prototype, brand, { value: true });
  }

  override readonly name: string = 'DroverError';
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, options: DroverErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }

  get status(): GrpcStatus {
    return errorCodes[this.code].status;
  }

  get exitCode(): number {
    return errorCodes[this.code].exit;
  }

  get transient(): boolean {
    return errorCodes[this.code].transient;
  }

  /**
   * Converts anything thrown into a DroverError. System errors with a specific meaning (full disk, port in use, missing privilege) have a
   * code.
   */
  static from(thrown: unknown, fallback: ErrorCode = 'internal'): DroverError {
    if (thrown instanceof DroverError) return thrown;
    if (thrown instanceof Error) {
      const system = fromSystemError(thrown);
      if (system !== undefined) return system;
      if (thrown.name === 'AbortError') return new DroverError('cancelled', 'the operation was cancelled', { cause: thrown });
      if (thrown.name === 'TimeoutError') return new DroverError('timed-out', 'the operation took too long', { cause: thrown });
      return new DroverError(fallback, errnoOf(thrown) === undefined ? thrown.message : `the system refused it: ${reasonOf(thrown)}`, {
        cause: thrown,
      });
    }
    return new DroverError(fallback, String(thrown));
  }
}

/** Whether `thrown` is a DroverError with one of `codes`. */
export function hasCode(thrown: unknown, ...codes: readonly ErrorCode[]): thrown is DroverError {
  return thrown instanceof DroverError && codes.includes(thrown.code);
}

/** The errno name of a Node system error, `ENOENT`. */
export function errnoOf(thrown: unknown): string | undefined {
  if (!(thrown instanceof Error) || !('code' in thrown)) return undefined;
  return typeof thrown.code === 'string' && /^E[A-Z0-9]+$/.test(thrown.code) ? thrown.code : undefined;
}

/**
 * Why something failed, for a sentence. For a system error this is `no such file or directory`, without the names of the errno, the call and
 * the file; for another error, its message.
 */
export function reasonOf(thrown: unknown): string {
  if (!(thrown instanceof Error)) return String(thrown);
  const name = errnoOf(thrown);
  return name === undefined ? thrown.message : (systemErrors().get(name) ?? 'the system refused it');
}

let systemErrorWords: ReadonlyMap<string, string> | undefined;

/** The words for the errno names. */
function systemErrors(): ReadonlyMap<string, string> {
  systemErrorWords ??= new Map([
    ...getSystemErrorMap().values(),
    // From execve(2); Node.js has no words for it.
    ['ENOEXEC', 'exec format error'],
    // From getaddrinfo(3), which has no errno.
    ['ENOTFOUND', 'its name cannot be resolved'],
    ['EAI_AGAIN', 'its name cannot be resolved at the moment'],
    // Node.js calls it an illegal operation on a directory.
    ['EISDIR', 'it is a directory'],
  ]);
  return systemErrorWords;
}

function fromSystemError(error: Error): DroverError | undefined {
  switch (errnoOf(error)) {
    case 'ENOSPC':
    case 'EDQUOT':
      return new DroverError('disk-full', 'no space left on the disk', {
        hint: 'free some space on that file system (df shows which one is full), and try again',
        cause: error,
      });
    case 'EADDRINUSE':
      return new DroverError('port-in-use', `the address ${addressOf(error)}is already in use`, {
        hint: 'stop the program that holds it, or choose another with --listen',
        cause: error,
      });
    case 'EACCES':
    case 'EPERM':
      return new DroverError('missing-privilege', 'the system does not permit it', {
        hint: 'run as root, or see `drover doctor`',
        cause: error,
      });
    default:
      return undefined;
  }
}

/**
 * The error for a command that could not be started, by the exit status of its sandbox: 127 or 126, as with a shell.
 * @param message the reason that init reported
 */
export function startFailure(exitCode: number | undefined, message: string): DroverError | undefined {
  if (exitCode !== 126 && exitCode !== 127) return undefined;
  return new DroverError(exitCode === 127 ? 'command-not-found' : 'command-not-executable', message, {
    hint: 'check the command: its spelling, its mode and format, and that the image has it',
  });
}

function addressOf(error: Error): string {
  return 'address' in error && 'port' in error ? `${String(error.address)}:${String(error.port)} ` : '';
}
