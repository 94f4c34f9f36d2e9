import type { DescMethod } from '@bufbuild/protobuf';
import { Code, ConnectError, type Interceptor } from '@connectrpc/connect';
import type { Clock, Logger } from '@drover/foundation';
import { hashSecret } from '@drover/pki';
import { control } from '@drover/protocol';
import type { Registry } from '../identity/index.ts';
import { refusalMs, registerRefusalMs } from '../limits.ts';
import type { IdentityStore, SandboxStore } from '../store/index.ts';
import { attachIdentity, callerOf, tokenHashKey, type SandboxCertificate } from './caller.ts';
import { needsIdentity, scopeOf } from './methods.ts';
import { refusalOnTheWire, Refused, type Refusals } from './refusals.ts';

/**
 * The one edge for errors, and one line in the log for each call. A refusal leaves at the same moment after its call came, so that how long
 * a check took does not tell which one it was (I-16).
 */
export function edge(options: { readonly clock: Clock; readonly logger: Logger; readonly refusals: Refusals }): Interceptor {
  const { clock, logger, refusals } = options;
  return (next) => async (request) => {
    const started = clock.now();
    const caller = callerOf(request.contextValues);
    const line = {
      method: request.method.name,
      hostId: caller.hostId,
      interface: caller.interface,
      peerAddress: caller.peerAddress,
      sandboxId: caller.certificate?.sandboxId ?? '',
      thumbprint: caller.certificate?.thumbprint ?? '',
    };
    try {
      const response = await next(request);
      logger.debug({ ...line, ms: clock.now() - started }, 'a sandbox called');
      return response;
    } catch (thrown) {
      const ms = clock.now() - started;
      if (thrown instanceof Refused) {
        if (request.method === control.ControlService.method.register) await refusals.note(caller, thrown);
        logger.warn({ ...line, ms, why: thrown.message }, 'a sandbox was refused');
        // The signal: whoever has gone away is not waited for.
        await clock.sleep(refusalDelayMs(request.method, clock.now() - started), request.signal);
        throw refusalOnTheWire();
      }
      if (thrown instanceof ConnectError) {
        logger.info({ ...line, ms, code: Code[thrown.code] }, thrown.rawMessage);
        throw thrown;
      }
      logger.error({ ...line, ms, err: thrown }, 'a call of a sandbox failed');
      throw new ConnectError('the control plane could not answer; try again', Code.Internal);
    }
  };
}

/** How much longer a refusal that took `spentMs` waits. */
function refusalDelayMs(method: DescMethod, spentMs: number): number {
  const next = (Math.floor(spentMs / refusalMs) + 1) * refusalMs;
  return Math.max(next, method === control.ControlService.method.register ? registerRefusalMs : 0) - spentMs;
}

const bearerPattern = /^bearer ([A-Za-z0-9._~+/=-]{1,256})$/i;

/** Lets nobody past without a token that is the certificate's own and good for the method (I-18). */
export function authentication(options: { readonly identities: Pick<IdentityStore, 'bearer'>; readonly clock: Clock }): Interceptor {
  return (next) => async (request) => {
    const { certificate } = callerOf(request.contextValues);
    if (certificate === undefined) throw new Refused('the certificate is not that of a sandbox');
    // TLS looked at the dates when the connection began.
    if (!(certificate.notAfter > options.clock.now())) throw new Refused('the certificate has expired on this connection');
    const token = bearerPattern.exec(request.header.get('authorization') ?? '')?.[1];
    if (token === undefined) throw new Refused('the call carries no token', 'token');
    const tokenHash = hashSecret(token);
    const bearer = await options.identities.bearer(tokenHash);
    if (bearer === undefined) throw new Refused('the token is unknown or has expired', 'token');
    if (bearer.scope !== scopeOf(request.method)) throw new Refused(`the token is one for ${bearer.scope}`, 'token');
    if (bearer.sandboxId !== certificate.sandboxId) throw new Refused(`the token is that of ${bearer.sandboxId}`, 'token');
    request.contextValues.set(tokenHashKey, tokenHash);
    return await next(request);
  };
}

/**
 * Finds the row of the certificate's thumbprint and gives it to the handler (I-18, I-19). The connection must have come from the sandbox's
 * own network, which is the word of its host: so that host must be the one that the sandbox is placed on.
 */
export function identification(options: {
  readonly registry: Pick<Registry, 'lookup' | 'seen'>;
  readonly sandboxes: Pick<SandboxStore, 'get'>;
}): Interceptor {
  const { registry, sandboxes } = options;
  return (next) => async (request) => {
    if (!needsIdentity(request.method)) return await next(request);
    const { certificate, hostId, networkOf } = callerOf(request.contextValues);
    // `authentication` let no other past.
    const { thumbprint, commonName, sandboxId } = certificate as SandboxCertificate;
    if (networkOf !== sandboxId) throw new Refused(`the connection came from the network of ${networkOf}`);
    if ((await sandboxes.get(sandboxId))?.hostId !== hostId) throw new Refused('the connection came through another host than its own');
    const found = await registry.lookup(thumbprint, commonName);
    if (found.kind === 'unknown' || found.identity.sandboxId !== sandboxId) throw new Refused('the registry does not know the certificate');
    attachIdentity(request.contextValues, found.identity);
    registry.seen(sandboxId, thumbprint);
    return await next(request);
  };
}
