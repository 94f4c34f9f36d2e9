import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError, errnoOf, newId, type ErrorCode } from '@drover/foundation';
import { errorFromWire, errorToWire } from '../errors.ts';
import { ErrorSchema, type Error as WireError } from '../generated/drover/link/v1/error_pb.ts';

export interface ErrorLog {
  readonly error: (fields: Record<string, unknown>, message: string) => void;
}

export function toConnectError(error: DroverError): ConnectError {
  // oxlint-disable-next-line typescript/no-unsafe-enum-assignment -- Connect's codes are the statuses of gRPC, by number
  const code: Code = error.status;
  return new ConnectError(error.message, code, undefined, [{ desc: ErrorSchema, value: errorToWire(error) }]);
}

/** The error that a Drover peer sent, including the forms of earlier versions; undefined for any other error. */
export function peerError(thrown: unknown): DroverError | undefined {
  if (!(thrown instanceof ConnectError)) return undefined;
  const [detail] = thrown.findDetails(ErrorSchema);
  if (detail !== undefined) return errorFromWire(detail, { cause: thrown });
  // Earlier versions of init and of the gateway sent code and hint as trailers.
  const code = thrown.metadata.get('drover-code');
  if (code === null) return undefined;
  return errorFromWire(
    { code, message: thrown.rawMessage, hint: decodeTrailer(thrown.metadata.get('drover-hint') ?? '') },
    { cause: thrown },
  );
}

/** Codes for a status without a detail, which comes from a proxy, the HTTP/2 client or the RPC library. */
const codeOfStatus: Readonly<Record<Code, ErrorCode>> = {
  [Code.Canceled]: 'cancelled',
  [Code.Unknown]: 'internal',
  [Code.InvalidArgument]: 'invalid-argument',
  [Code.DeadlineExceeded]: 'timed-out',
  [Code.NotFound]: 'unimplemented',
  [Code.AlreadyExists]: 'conflict',
  [Code.PermissionDenied]: 'permission-denied',
  [Code.ResourceExhausted]: 'too-large',
  [Code.FailedPrecondition]: 'failed-precondition',
  [Code.Aborted]: 'cancelled',
  [Code.OutOfRange]: 'invalid-argument',
  [Code.Unimplemented]: 'unimplemented',
  [Code.Internal]: 'internal',
  [Code.Unavailable]: 'unavailable',
  [Code.DataLoss]: 'internal',
  [Code.Unauthenticated]: 'unauthenticated',
};

/** The DroverError that a peer sent, or that was thrown here and perhaps wrapped by Connect; undefined for any other error. */
export function knownError(thrown: unknown): DroverError | undefined {
  const sent = peerError(thrown);
  if (sent !== undefined) return sent;
  let inner = thrown;
  for (let depth = 0; depth < 8 && inner instanceof Error; depth++) {
    if (inner instanceof DroverError) return inner;
    inner = inner.cause;
  }
  return undefined;
}

/** Converts an exception of a handler or a call to a DroverError. */
export function fromConnectError(thrown: unknown): DroverError {
  const known = knownError(thrown);
  if (known !== undefined) return known;
  if (!(thrown instanceof ConnectError)) return DroverError.from(thrown);
  return new DroverError(codeOfStatus[thrown.code], thrown.rawMessage, { cause: thrown });
}

/**
 * The error that a peer may see. The message of an unknown error may contain paths or secrets: the peer receives an id instead.
 * @param report called with the id, under which the caller logs the error itself
 */
export function publicError(thrown: unknown, report: (id: string) => void): DroverError {
  const error = fromConnectError(thrown);
  if (error.code !== 'internal' || thrown instanceof DroverError || thrown instanceof ConnectError) return error;
  const id = newId('e');
  report(id);
  // The message of an errno is the system's fixed text, which reveals nothing.
  return new DroverError('internal', errnoOf(thrown) === undefined ? 'an unexpected error occurred' : error.message, {
    hint: `the log of the process that failed has the error with the id ${id}`,
    cause: thrown,
  });
}

/** `publicError` in the form of the wire. Logs an unknown error with `fields`. */
export function publicErrorToWire(thrown: unknown, logger: ErrorLog, fields: Record<string, unknown> = {}): WireError {
  return errorToWire(publicError(thrown, (errorId) => logger.error({ ...fields, err: thrown, errorId }, 'an unexpected error')));
}

function decodeTrailer(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
