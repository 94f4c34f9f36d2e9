import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError, errnoOf, hasCode, type ErrorCode } from '@drover/foundation';
import { errorFromWire, link } from '@drover/protocol';

/** For a server that says nothing of its own: one code for each status. */
const codeOfStatus: Readonly<Record<Code, ErrorCode>> = {
  [Code.Canceled]: 'cancelled',
  [Code.Unknown]: 'internal',
  [Code.InvalidArgument]: 'invalid-argument',
  [Code.DeadlineExceeded]: 'timed-out',
  [Code.NotFound]: 'unimplemented',
  [Code.AlreadyExists]: 'name-taken',
  [Code.PermissionDenied]: 'permission-denied',
  [Code.ResourceExhausted]: 'too-large',
  [Code.FailedPrecondition]: 'failed-precondition',
  [Code.Aborted]: 'control-plane-unreachable',
  [Code.OutOfRange]: 'invalid-argument',
  [Code.Unimplemented]: 'unimplemented',
  [Code.Internal]: 'internal',
  [Code.Unavailable]: 'control-plane-unreachable',
  [Code.DataLoss]: 'internal',
  [Code.Unauthenticated]: 'unauthenticated',
};

/** Anything that a call throws as the DroverError that the server sent, or the one that tells why it could not be reached. */
export function fromApiError(thrown: unknown, server = 'the server'): DroverError {
  if (thrown instanceof DroverError) return thrown;
  const own = thrown instanceof ConnectError ? thrown.findDetails(link.ErrorSchema)[0] : undefined;
  if (own !== undefined) return errorFromWire(own);
  const inner = innermost(thrown);
  if (inner instanceof DroverError) return inner;
  const unreachable = unreachableError(inner, server);
  if (unreachable !== undefined) return unreachable;
  if (!(thrown instanceof ConnectError)) return DroverError.from(thrown);
  // A stream that the connection took with it; an answer of the server carries a detail.
  const reset = thrown.code === Code.Canceled && thrown.rawMessage.startsWith('http/2 stream closed');
  if (reset || thrown.code === Code.Internal || thrown.code === Code.Aborted || thrown.code === Code.Unavailable) {
    return new DroverError('control-plane-unreachable', `the connection to ${server} broke: ${thrown.rawMessage}`, {
      hint: 'is the server still running?',
      cause: thrown,
    });
  }
  return new DroverError(codeOfStatus[thrown.code], thrown.rawMessage, { cause: thrown });
}

/** Says whether the call may have got nowhere, or its answer may be lost, because of the connection. */
export function isConnectionError(error: DroverError): boolean {
  return hasCode(error, 'control-plane-unreachable', 'unavailable');
}

/**
 * Whether it makes sense to try again: after a broken connection, yes. Where nobody has listened from the beginning, no; but one
 * refusal may be that of an older attempt to connect that this call merely joined, so the second one counts.
 */
export class Reach {
  #refusals = 0;
  #reached = false;

  mayTryAgain(error: DroverError): boolean {
    if (!isConnectionError(error)) return false;
    if (errnoOf(innermost(error)) !== 'ECONNREFUSED') this.#reached = true;
    else this.#refusals++;
    return this.#reached || this.#refusals < 2;
  }
}

function innermost(thrown: unknown): unknown {
  let inner = thrown;
  for (let depth = 0; depth < 8 && inner instanceof Error && inner.cause !== undefined; depth++) inner = inner.cause;
  return inner;
}

function unreachableError(inner: unknown, server: string): DroverError | undefined {
  const code = inner instanceof Error && 'code' in inner && typeof inner.code === 'string' ? inner.code : undefined;
  if (code === undefined) return undefined;
  const because = (why: string, hint: string): DroverError =>
    new DroverError('control-plane-unreachable', `${server} cannot be reached: ${why}`, { hint, cause: inner });
  switch (code) {
    case 'ECONNREFUSED':
      return because('nothing listens there', 'start it with `drover up`, or name another server with --server');
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return because('its name is not known', 'check the name, or name another server with --server');
    case 'ETIMEDOUT':
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return because('no answer from its address', 'check the address and the network in between');
    case 'ECONNRESET':
    case 'EPIPE':
    case 'ERR_HTTP2_SESSION_ERROR':
    case 'ERR_HTTP2_STREAM_ERROR':
    case 'ERR_HTTP2_GOAWAY_SESSION':
    case 'ERR_STREAM_PREMATURE_CLOSE':
    case 'ERR_HTTP2_STREAM_CANCEL':
      return because('the connection broke', 'is the server still running?');
    case 'DEPTH_ZERO_SELF_SIGNED_CERT':
    case 'SELF_SIGNED_CERT_IN_CHAIN':
    case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE':
    case 'UNABLE_TO_GET_ISSUER_CERT':
    case 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY':
    case 'CERT_SIGNATURE_FAILURE':
    case 'CERT_HAS_EXPIRED':
    case 'ERR_TLS_CERT_ALTNAME_INVALID':
      return new DroverError('ca-mismatch', `${server} is not the server that this client trusts (${code})`, {
        hint: 'check the address, and that the CA given here is the one of this server',
        cause: inner,
      });
    default:
      return undefined;
  }
}
