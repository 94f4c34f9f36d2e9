import { create } from '@bufbuild/protobuf';
import { canonicalCommonName, DroverError, parseSandboxId, type HostId, type Logger } from '@drover/foundation';
import type { CertificateAuthority, IssuedCertificate } from '@drover/pki';
import { link } from '@drover/protocol';
import { publicErrorToWire } from '@drover/protocol/rpc';
import type { Store } from '../store/index.ts';
import type { Registry } from './registry.ts';

export interface SigningDependencies {
  readonly store: Store;
  readonly ca: CertificateAuthority;
  /** Absent: certificates of sandboxes are issued without a token, and no sandbox can register. */
  readonly registry?: Pick<Registry, 'issued'>;
}

interface Signed {
  readonly certificate: IssuedCertificate;
  readonly bootstrapToken: string;
}

/**
 * Signs a certificate for a host over its link: a renewal of its own (L-2), or one for a sandbox that the store has placed on it, under the
 * name of that sandbox (I-5), with the token that registers it (I-13). Never throws: the response carries the refusal.
 */
export async function answerSigningRequest(
  dependencies: SigningDependencies,
  hostId: HostId,
  request: link.SigningRequest,
  logger: Logger,
): Promise<link.SigningResponse> {
  const answer = create(link.SigningResponseSchema, { requestId: request.requestId });
  try {
    const { certificate, bootstrapToken } = await sign(dependencies, hostId, request);
    answer.certificatePem = certificate.certificatePem;
    answer.bootstrapToken = bootstrapToken;
    answer.caPem = dependencies.ca.caPem;
  } catch (error) {
    answer.error = publicErrorToWire(error, logger, { hostId });
  }
  return answer;
}

async function sign({ store, ca, registry }: SigningDependencies, hostId: HostId, request: link.SigningRequest): Promise<Signed> {
  switch (request.subject.case) {
    case 'host': {
      const certificate = await ca.signHost(hostId, request.csrDer);
      await store.hosts.certificateRenewed(hostId, certificate.notAfter);
      return { certificate, bootstrapToken: '' };
    }
    case 'sandboxId': {
      const id = parseSandboxId(request.subject.value);
      const row = await store.sandboxes.get(id);
      // The same refusal for every case: a host must learn nothing about other hosts' sandboxes.
      if (row === undefined || row.hostId !== hostId || row.desired === 'deleted' || row.deletedAt !== undefined) {
        throw new DroverError('permission-denied', `sandbox ${id} is not placed on this host`);
      }
      const { csrDer } = request;
      const certificate = await ca.signSandbox(id, canonicalCommonName(row.project, row.name), csrDer);
      const { thumbprint, notAfter } = certificate;
      // Register before responding: the registry must know every certificate that leaves this server.
      const bootstrapToken = (await registry?.issued({ sandboxId: id, thumbprint, notAfter, csrDer })) ?? '';
      return { certificate, bootstrapToken };
    }
    case undefined:
      break;
  }
  throw new DroverError('invalid-argument', 'the signing request names no subject');
}
