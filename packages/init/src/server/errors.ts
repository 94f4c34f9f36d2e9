import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError, GrpcStatus } from '@drover/foundation';

/** The same numbers, in Connect's type. */
const codeOf: Record<GrpcStatus, Code> = {
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

/** A thrown value as gRPC's status, with Drover's code and hint beside it in the trailers. */
export function toConnectError(thrown: unknown): ConnectError {
  const error = thrown instanceof ConnectError ? fromProtocol(thrown) : DroverError.from(thrown);
  return new ConnectError(error.message, codeOf[error.status], {
    'drover-code': error.code,
    ...(error.hint === undefined ? {} : { 'drover-hint': encodeURIComponent(error.hint) }),
  });
}

/** What Connect itself found wrong with the requests. */
function fromProtocol(error: ConnectError): DroverError {
  if (error.code === Code.Canceled || error.code === Code.Aborted) return new DroverError('cancelled', error.rawMessage);
  if (error.code === Code.DeadlineExceeded) return new DroverError('timed-out', error.rawMessage);
  return new DroverError(error.code === Code.ResourceExhausted ? 'too-large' : 'protocol-violation', error.rawMessage);
}
