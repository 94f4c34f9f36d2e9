import { api } from '@drover/protocol';
import { rpcEdge, type RpcEdge, type RpcRequest } from '@drover/protocol/rpc';
import { maxRequestBytes } from '../../limits.ts';
import { authenticate, callerKey } from './authentication.ts';
import type { ApiContext } from './context.ts';

/** Services that are called without an API token: for JoinService the join token is the credential (L-1). */
const exempt = new Set<string>([api.JoinService.typeName]);

/** The API's edge: a valid API token for each call. The log line has the caller's name and the reference that the call is about. */
export function apiEdge({ store, logger, clock }: Pick<ApiContext, 'store' | 'logger' | 'clock'>, stop: AbortSignal): RpcEdge {
  return rpcEdge({
    logger,
    clock,
    maxMessageBytes: maxRequestBytes,
    stop,
    authorize: async ({ service, header, contextValues }) => {
      if (exempt.has(service.typeName)) return;
      contextValues.set(callerKey, await authenticate(store.tokens, header.get('authorization')));
    },
    fields: (request) => ({ caller: request.contextValues.get(callerKey)?.name ?? '', ...subjectOf(request) }),
  });
}

/** The reference that a unary request is about. Nothing else of a request is logged. */
function subjectOf(request: RpcRequest): { readonly subject?: string } {
  if (request.stream) return {};
  const { sandbox, host, name, hostId } = request.message as Readonly<Record<string, unknown>>;
  for (const value of [sandbox, host, name, hostId]) {
    if (typeof value === 'string' && value !== '') return { subject: value.slice(0, 100) };
  }
  return {};
}
