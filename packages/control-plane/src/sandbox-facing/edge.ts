import type { DescMethod } from '@bufbuild/protobuf';
import type { Clock, Logger } from '@drover/foundation';
import { hashSecret } from '@drover/pki';
import { control } from '@drover/protocol';
import { rpcEdge, type RpcEdge, type RpcRequest } from '@drover/protocol/rpc';
import type { Registry } from '../identity/index.ts';
import { refusalMs, registerRefusalMs, sandboxRequestBytes } from '../limits.ts';
import type { IdentityStore, SandboxStore } from '../store/index.ts';
import { attachIdentity, callerOf, tokenHashKey, type SandboxCertificate } from './caller.ts';
import { needsIdentity, scopeOf } from './methods.ts';
import { Refused, type Refusals } from './refusals.ts';

export interface SandboxEdgeOptions {
  readonly identities: Pick<IdentityStore, 'bearer'>;
  readonly sandboxes: Pick<SandboxStore, 'get'>;
  readonly registry: Pick<Registry, 'lookup' | 'seen'>;
  readonly refusals: Refusals;
  readonly clock: Clock;
  readonly logger: Logger;
}

/**
 * The edge of ControlService (I-18): after TLS it checks the token, then the row in the registry. Every refusal is sent after the same
 * delay from the start of its call, so that its time does not reveal the failed check (I-16).
 */
export function sandboxEdge(options: SandboxEdgeOptions): RpcEdge {
  const { clock, logger, refusals } = options;
  return rpcEdge({
    logger,
    clock,
    maxMessageBytes: sandboxRequestBytes,
    authorize: async (request) => {
      await authenticate(options, request);
      await identify(options, request);
    },
    fields: ({ contextValues }) => {
      const { hostId, interface: name, peerAddress, certificate } = callerOf(contextValues);
      const { sandboxId = '', thumbprint = '' } = certificate ?? {};
      return { hostId, interface: name, peerAddress, sandboxId, thumbprint };
    },
    beforeError: async (error, { method, contextValues, signal }, ms) => {
      if (!(error instanceof Refused)) return;
      const start = clock.now() - ms;
      if (method === control.ControlService.method.register) await refusals.note(callerOf(contextValues), error);
      // The signal ends the delay if the caller disconnects.
      await clock.sleep(refusalDelayMs(method, clock.now() - start), signal);
    },
  });
}

/** The remaining delay of a refusal that took `spentMs`. */
function refusalDelayMs(method: DescMethod, spentMs: number): number {
  const next = (Math.floor(spentMs / refusalMs) + 1) * refusalMs;
  return Math.max(next, method === control.ControlService.method.register ? registerRefusalMs : 0) - spentMs;
}

const bearerPattern = /^bearer ([A-Za-z0-9._~+/=-]{1,256})$/i;

/** Requires a token that belongs to the certificate and is valid for the method (I-18). @throws {Refused} */
async function authenticate({ identities, clock }: SandboxEdgeOptions, { method, header, contextValues }: RpcRequest): Promise<void> {
  const { certificate } = callerOf(contextValues);
  if (certificate === undefined) throw new Refused('the certificate is not that of a sandbox');
  // TLS checked the dates only when the connection began.
  if (!(certificate.notAfter > clock.now())) throw new Refused('the certificate has expired on this connection');
  const token = bearerPattern.exec(header.get('authorization') ?? '')?.[1];
  if (token === undefined) throw new Refused('the call carries no token', 'token');
  const tokenHash = hashSecret(token);
  const bearer = await identities.bearer(tokenHash);
  if (bearer === undefined) throw new Refused('the token is unknown or has expired', 'token');
  if (bearer.scope !== scopeOf(method)) throw new Refused(`the token is one for ${bearer.scope}`, 'token');
  if (bearer.sandboxId !== certificate.sandboxId) throw new Refused(`the token is that of ${bearer.sandboxId}`, 'token');
  contextValues.set(tokenHashKey, tokenHash);
}

/**
 * Passes the registry's row of the certificate's thumbprint to the handler (I-18, I-19). The connection must have come from the network of
 * the sandbox, as its host reports. Only the report of the host on which the sandbox is placed counts. @throws {Refused}
 */
async function identify({ registry, sandboxes }: SandboxEdgeOptions, { method, contextValues }: RpcRequest): Promise<void> {
  if (!needsIdentity(method)) return;
  const { certificate, hostId, networkOf } = callerOf(contextValues);
  // `authenticate` has refused every call without a certificate.
  const { thumbprint, commonName, sandboxId } = certificate as SandboxCertificate;
  if (networkOf !== sandboxId) throw new Refused(`the connection came from the network of ${networkOf}`);
  if ((await sandboxes.get(sandboxId))?.hostId !== hostId) throw new Refused('the connection came through another host than its own');
  const found = await registry.lookup(thumbprint, commonName);
  if (found.kind === 'unknown' || found.identity.sandboxId !== sandboxId) throw new Refused('the registry does not know the certificate');
  attachIdentity(contextValues, found.identity);
  registry.seen(sandboxId, thumbprint);
}
