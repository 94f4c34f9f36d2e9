import { X509Certificate } from 'node:crypto';
import type { PeerCertificate } from 'node:tls';
import { uriNamesOf } from '@drover/pki';

const controlPlaneName = /^spiffe:\/\/([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)\/control-plane$/;

/**
 * Checks that a certificate, whose chain TLS has verified, is the control plane's: by its URI, since the address may be any. Certificates of hosts
 * and sandboxes come from the same CA and must not pass.
 * @param trustDomain absent: any, before the join
 */
export function controlPlaneIdentityError(certificate: Pick<PeerCertificate, 'raw'>, trustDomain?: string): Error | undefined {
  const uris = uriNamesOf(new X509Certificate(certificate.raw));
  const domain = uris.length === 1 && uris[0] !== undefined ? controlPlaneName.exec(uris[0])?.[1] : undefined;
  if (domain !== undefined && (trustDomain === undefined || domain === trustDomain)) return undefined;
  return new Error(`the server's certificate is not that of the control plane (it names ${uris.join(', ') || 'no identity'})`);
}
