import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError, GrpcStatus, hasCode, isErrorCode, type ErrorCode } from '@drover/foundation';
import { errorFromWire, errorToWire, link } from '@drover/protocol';

/** Connect's names of the gRPC statuses. */
const codeOf: Readonly<Record<GrpcStatus, Code>> = {
  [GrpcStatus.cancelled]: Code.Canceled,
  [GrpcStatus.unknown]: Code.Unknown,
  [GrpcStatus.invalidArgument]: Code.InvalidArgument,
  [GrpcStatus.deadlineExceeded]: Code.DeadlineExceeded,
  [GrpcStatus.notFound]: Code.NotFound,
  [GrpcStatus.alreadyExists]: Code.AlreadyExists,
  [GrpcStatus.permissionDenied]: Code.PermissionDenied,
  [GrpcStatus.resourceExhausted]: Code.ResourceExhausted,
  [GrpcStatus.failedPrecondition]: Code.FailedPrecondition,
  [GrpcStatus.aborted]: Code.Aborted,
  [GrpcStatus.unimplemented]: Code.Unimplemented,
  [GrpcStatus.internal]: Code.Internal,
  [GrpcStatus.unavailable]: Code.Unavailable,
  [GrpcStatus.unauthenticated]: Code.Unauthenticated,
};

/** An error as the API sends it: the status of its code, and code, message and hint as a typed detail. Causes stay here. */
export function toConnectError(thrown: unknown): ConnectError {
  const error = fromConnectError(thrown);
  return new ConnectError(error.message, codeOf[error.status], undefined, [{ desc: link.ErrorSchema, value: errorToWire(error) }]);
}

/** For what a peer sent without a detail of ours: one code for each status. */
const codeOfStatus: Readonly<Record<Code, ErrorCode>> = {
  [Code.Canceled]: 'cancelled',
  [Code.Unknown]: 'internal',
  [Code.InvalidArgument]: 'invalid-argument',
  [Code.DeadlineExceeded]: 'timed-out',
  [Code.NotFound]: 'exec-not-found',
  [Code.AlreadyExists]: 'name-taken',
  [Code.PermissionDenied]: 'permission-denied',
  [Code.ResourceExhausted]: 'too-large',
  [Code.FailedPrecondition]: 'failed-precondition',
  [Code.Aborted]: 'conflict',
  [Code.OutOfRange]: 'invalid-argument',
  [Code.Unimplemented]: 'unimplemented',
  [Code.Internal]: 'internal',
  [Code.Unavailable]: 'unavailable',
  [Code.DataLoss]: 'internal',
  [Code.Unauthenticated]: 'unauthenticated',
};

/** Anything thrown, a peer's ConnectError included, as a DroverError. */
export function fromConnectError(thrown: unknown): DroverError {
  if (thrown instanceof DroverError) return thrown;
  if (!(thrown instanceof ConnectError)) return DroverError.from(thrown);
  const [detail] = thrown.findDetails(link.ErrorSchema);
  if (detail !== undefined) return errorFromWire(detail);
  // What init sends: gRPC trailers.
  const code = thrown.metadata.get('drover-code');
  if (code !== null && isErrorCode(code)) {
    const hint = thrown.metadata.get('drover-hint');
    return new DroverError(code, thrown.rawMessage, { cause: thrown, ...(hint === null ? {} : { hint: decodeHint(hint) }) });
  }
  // A handler's own DroverError that Connect wrapped on its way through a stream.
  if (thrown.cause instanceof DroverError) return thrown.cause;
  return new DroverError(codeOfStatus[thrown.code], thrown.rawMessage, { cause: thrown });
}

function decodeHint(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    // Not encoded after all: shown as it is.
    return text;
  }
}

/** Whether the response to a gRPC call was not gRPC: something other than init answers at the peer. Connect says so only in its message. */
export function peerIsForeign(thrown: unknown): boolean {
  if (!(thrown instanceof ConnectError) || thrown.metadata.has('drover-code')) return false;
  return /^(HTTP \d{3}$|unsupported content type )/.test(thrown.rawMessage);
}

/**
 * Says whether `thrown` tells that the way to a process was cut, rather than what the process's keeper answered. Whoever
 * answers gives a code of ours; a cut connection leaves only what the HTTP/2 client makes of it.
 */
export function connectionBroke(thrown: unknown): boolean {
  const error = fromConnectError(thrown);
  if (hasCode(error, 'unavailable', 'session-unavailable', 'host-unavailable')) return true;
  if (!(thrown instanceof ConnectError) || thrown.metadata.has('drover-code')) return false;
  return hasCode(error, 'cancelled', 'internal', 'conflict');
}
