import { X509Certificate } from 'node:crypto';
import type { HostId } from '@drover/foundation';
import { subjectOf, validityOf, type Names } from '@drover/pki';
import type { ServerDuplexStream } from '@grpc/grpc-js';

/**
 * The host that the certificate of a call's connection names (L-5); undefined for any other certificate.
 * TLS has verified the chain. A resumed session skips the check of the dates, so they are checked here.
 */
export function hostOf(call: Pick<ServerDuplexStream<unknown, unknown>, 'getAuthContext'>, names: Names, now: number): HostId | undefined {
  const der = call.getAuthContext().sslPeerCertificate?.raw;
  if (der === undefined) return undefined;
  const certificate = new X509Certificate(der);
  const { from, to } = validityOf(certificate);
  if (!(from.getTime() <= now && now <= to.getTime())) return undefined;
  const subject = subjectOf(certificate, names);
  return subject?.kind === 'host' ? subject.id : undefined;
}
