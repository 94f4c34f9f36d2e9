import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import { DroverError, parseName, parseProject } from '@drover/foundation';
import { control } from '@drover/protocol';
import type { Registry } from '../identity/index.ts';
import { callerOf, identityOf, tokenHashKey } from './caller.ts';
import { Refused, type Refusals } from './refusals.ts';

interface ServiceDependencies {
  readonly registry: Pick<Registry, 'register' | 'seen'>;
  readonly refusals: Refusals;
}

export function controlService(dependencies: ServiceDependencies): ServiceImpl<typeof control.ControlService> {
  return {
    register: (request, context) => register(dependencies, request, context),
    whoAmI: (_request, { values }) => {
      const identity = identityOf(values);
      if (identity === undefined) throw new DroverError('internal', 'a call that requires an identity has none');
      return create(control.WhoAmIResponseSchema, {
        sandboxId: identity.sandboxId,
        project: identity.project,
        name: identity.name,
        thumbprint: identity.thumbprint,
        registeredAt: timestampFromMs(identity.registeredAt),
      });
    },
  };
}

/** I-13 to I-17. The request contains only the names. The rest of the claim is what this side observed of the connection. */
async function register(
  { registry, refusals }: ServiceDependencies,
  { project, name }: control.RegisterRequest,
  { values }: HandlerContext,
): Promise<control.RegisterResponse> {
  const { certificate, hostId, peerAddress } = callerOf(values);
  if (certificate === undefined) throw new Refused('the certificate is not that of a sandbox');
  parseProject(project);
  parseName(name);
  const { sandboxId, thumbprint, commonName } = certificate;
  const tokenHash = values.get(tokenHashKey);
  const outcome = await registry.register({ sandboxId, thumbprint, commonName, project, name, tokenHash, hostId, peerAddress });
  if (outcome.kind === 'storage-failed') throw new Error('the store failed', { cause: outcome.error });
  if (outcome.kind === 'refused') throw new Refused(`the registration was refused: ${outcome.why}`, outcome.why, outcome.checks);
  refusals.welcomed(sandboxId, outcome.checks);
  registry.seen(sandboxId, thumbprint);
  return create(control.RegisterResponseSchema, { accessToken: outcome.accessToken });
}
