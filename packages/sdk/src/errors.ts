import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { fromConnectError, knownError } from '@drover/protocol/rpc';

/** Anything that a call throws, as the server's own error, or as the reason why the server could not be reached. */
export function fromApiError(thrown: unknown, server = 'the server'): DroverError {
  const known = knownError(thrown);
  if (known !== undefined) return known;
  const inner = innermost(thrown);
  const unreachable = unreachableError(inner, server);
  if (unreachable !== undefined) return unreachable;
  if (!(thrown instanceof ConnectError)) return DroverError.from(thrown);
  // A stream that broke with its connection: an error of the server carries a detail.
  const reset = thrown.code === Code.Canceled && thrown.rawMessage.startsWith('http/2 stream closed');
  if (reset || thrown.code === Code.Internal || thrown.code === Code.Aborted || thrown.code === Code.Unavailable) {
    return new DroverError('control-plane-unreachable', `the connection to the control plane at ${server} broke`, {
      hint: 'it may be restarting; drover doctor shows whether it responds',
      cause: thrown,
    });
  }
  return fromConnectError(thrown);
}

/** The error at the end of the chain of causes. */
export function innermost(thrown: unknown): unknown {
  let inner = thrown;
  for (let depth = 0; depth < 8 && inner instanceof Error && inner.cause !== undefined; depth++) inner = inner.cause;
  return inner;
}

function unreachableError(inner: unknown, server: string): DroverError | undefined {
  const code = inner instanceof Error && 'code' in inner && typeof inner.code === 'string' ? inner.code : undefined;
  if (code === undefined) return undefined;
  const because = (why: string, hint: string): DroverError =>
    new DroverError('control-plane-unreachable', `cannot reach the control plane at ${server}: ${why}`, { hint, cause: inner });
  switch (code) {
    case 'ECONNREFUSED':
      return because('nothing listens there', 'start one with drover up, or name another with --context or --server');
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return because('its name cannot be resolved', 'check the name and the DNS of this machine');
    case 'ETIMEDOUT':
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return because('its address does not respond', 'check the address and the network in between');
    case 'EADDRNOTAVAIL':
    case 'EINVAL':
      return because('the address is not valid', 'check the address');
    case 'ECONNRESET':
    case 'EPIPE':
    case 'ERR_HTTP2_SESSION_ERROR':
    case 'ERR_HTTP2_STREAM_ERROR':
    case 'ERR_HTTP2_GOAWAY_SESSION':
    case 'ERR_STREAM_PREMATURE_CLOSE':
    case 'ERR_HTTP2_STREAM_CANCEL':
      return because('the connection broke', 'it may be restarting; drover doctor shows whether it responds');
    case 'EPROTO':
      return because('it does not speak TLS 1.3', 'check the port: the API listens on 7443 unless up or serve was given another');
    default:
      return certificateError(inner, code, server);
  }
}

/** Codes of certificates whose dates do not include the present time of this machine. */
const dateCodes = new Set(['CERT_HAS_EXPIRED', 'CERT_NOT_YET_VALID']);
/** Codes of OpenSSL's certificate verification, as Node passes them on. */
const certificateCode =
  /^(?:DEPTH_ZERO_SELF_SIGNED_CERT|SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_|CERT_|CRL_|INVALID_|ERR_TLS_CERT_ALTNAME_INVALID)/;

function certificateError(inner: unknown, code: string, server: string): DroverError | undefined {
  if (!certificateCode.test(code)) return undefined;
  if (dateCodes.has(code)) {
    return new DroverError('ca-mismatch', `the certificate of ${server} is not valid at the time that the clock of this machine shows`, {
      hint: 'compare the clocks of both machines',
      cause: inner,
    });
  }
  return new DroverError('ca-mismatch', `the certificate of ${server} is not from the CA that this client trusts`, {
    hint: 'check the address, and that --ca or the context names the CA of this control plane',
    cause: inner,
  });
}

/** Whether a certificate was refused for its dates alone, as with a wrong clock on either side. */
export function isDateError(error: DroverError): boolean {
  const inner = innermost(error);
  return inner instanceof Error && 'code' in inner && dateCodes.has(String(inner.code));
}
