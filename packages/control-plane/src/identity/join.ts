import { create } from '@bufbuild/protobuf';
import { DroverError, hasCode, parseHostId } from '@drover/foundation';
import { hashSecret, parseJoinToken } from '@drover/pki';
import { api } from '@drover/protocol';
import { parseHostName } from '@drover/spec';
import type { SigningDependencies } from './signing.ts';

/**
 * JoinService.Join (L-1 to L-3, L-7): takes one use of the token, writes the host's row, signs its certificate.
 * The same host may repeat the call after a lost response.
 * @throws {DroverError} join-refused, the same for an unknown, a used and an expired token and for a removed host; invalid-argument
 */
export async function joinHost(
  { store, ca, linkAddress }: Pick<SigningDependencies, 'store' | 'ca'> & { readonly linkAddress: string },
  request: api.JoinRequest,
): Promise<api.JoinResponse> {
  const hostId = parseHostId(request.hostId);
  const hostname = parseHostName(request.hostname);
  // The cause appears only in this server's log: on the wire every refusal is the same (L-3).
  const refused = (cause: unknown): DroverError =>
    new DroverError('join-refused', 'the join was refused', { hint: 'make a new token with `drover host token` and try again', cause });
  let secret: string;
  try {
    secret = parseJoinToken(request.token).secret;
  } catch (error) {
    throw refused(error);
  }
  // Sign before taking the token: an invalid signing request must not use up the token.
  const issued = await ca.signHost(hostId, request.csrDer);
  const taken = await store.tokens.takeJoin(hashSecret(secret), hostId);
  if (taken === undefined) throw refused(new Error('the token is unknown, used up or expired'));
  let name: string;
  try {
    ({ name } = await store.hosts.join({
      id: hostId,
      name: hostname,
      labels: taken.labels,
      certificateExpiresAt: issued.notAfter,
    }));
  } catch (error) {
    if (hasCode(error, 'host-removed')) throw refused(error);
    throw error;
  }
  return create(api.JoinResponseSchema, {
    certificatePem: issued.certificatePem,
    caPem: ca.caPem,
    trustDomain: ca.names.trustDomain,
    linkAddress,
    labels: { ...taken.labels },
    hostName: name,
  });
}
