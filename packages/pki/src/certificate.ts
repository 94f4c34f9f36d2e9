import { createHash, X509Certificate } from 'node:crypto';
import type { Names, SpiffeSubject } from './pki.ts';

/** OIDs of the extended key usages (RFC 5280, section 4.2.1.12). */
export const serverAuth = '1.3.6.1.5.5.7.3.1';
export const clientAuth = '1.3.6.1.5.5.7.3.2';

/** SHA-256 of the certificate's DER, lower-case hex (I-7). @param certificate PEM or DER */
export function thumbprintOf(certificate: string | Uint8Array): string {
  return createHash('sha256').update(new X509Certificate(certificate).raw).digest('hex');
}

/** The URI SANs of a certificate, in their order. */
export function uriNamesOf(certificate: X509Certificate): readonly string[] {
  // Node prints SANs as `URI:a, DNS:b` and JSON-quotes values that could be mistaken for a separator (CVE-2021-44532).
  const names = certificate.subjectAltName ?? '';
  return [...names.matchAll(/(?:^|, )URI:([^",]+)(?=, |$)/g)].flatMap((match) => (match[1] === undefined ? [] : [match[1]]));
}

/** The subject of a certificate's URI SAN in the trust domain of `names`; undefined for none, several (SPIFFE X.509-SVID, section 2), or a foreign one. */
export function subjectOf(certificate: X509Certificate, names: Names): SpiffeSubject | undefined {
  const uris = uriNamesOf(certificate);
  return uris.length === 1 && uris[0] !== undefined ? names.parse(uris[0]) : undefined;
}

export function hasKeyUsage(certificate: X509Certificate, usage: typeof serverAuth | typeof clientAuth): boolean {
  return certificate.keyUsage?.includes(usage) ?? false;
}

/**
 * The dates of a certificate; an invalid Date where one cannot be parsed. They come from Node's text: `validFromDate` and `validToDate` of
 * such a certificate are uninitialized memory (Node 26.10), which may be a date that includes the present.
 */
export function validityOf({ validFrom, validTo }: X509Certificate): { readonly from: Date; readonly to: Date } {
  return { from: new Date(validFrom), to: new Date(validTo) };
}

/** When the certificate expires. Milliseconds since the epoch. */
export function notAfterOf(certificatePem: string): number {
  return validityOf(new X509Certificate(certificatePem)).to.getTime();
}

/** When to renew a certificate: after two thirds of its lifetime. Milliseconds since the epoch. */
export function renewAt(certificatePem: string): number {
  const { from, to } = validityOf(new X509Certificate(certificatePem));
  return from.getTime() + ((to.getTime() - from.getTime()) * 2) / 3;
}
