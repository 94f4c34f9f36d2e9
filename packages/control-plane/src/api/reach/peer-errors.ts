import { ConnectError } from '@connectrpc/connect';
import { hasCode } from '@drover/foundation';
import { fromConnectError, peerError } from '@drover/protocol/rpc';

/** Whether the response to a gRPC call was not gRPC: the peer is not an init of Drover. Connect says so only in its message. */
export function peerIsForeign(thrown: unknown): boolean {
  if (!(thrown instanceof ConnectError) || peerError(thrown) !== undefined) return false;
  return /^(HTTP \d{3}$|unsupported content type )/.test(thrown.rawMessage);
}

/** Whether the way to a process was cut. A peer that responds sends a code of Drover's; a cut connection leaves only the error of the HTTP/2 client. */
export function connectionBroke(thrown: unknown): boolean {
  const error = fromConnectError(thrown);
  if (hasCode(error, 'unavailable', 'session-unavailable', 'host-unavailable')) return true;
  return thrown instanceof ConnectError && peerError(thrown) === undefined && hasCode(error, 'cancelled', 'internal');
}
