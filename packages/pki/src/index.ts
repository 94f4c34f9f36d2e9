export { openCertificateAuthority } from './authority.ts';
export {
  clientAuth,
  hasKeyUsage,
  notAfterOf,
  renewAt,
  serverAuth,
  subjectOf,
  thumbprintOf,
  uriNamesOf,
  validityOf,
} from './certificate.ts';
export { clockSkewMs, hostLifetimeMs, sandboxLifetimeMs } from './limits.ts';
export { namesOf } from './names.ts';
export type { CertificateAuthority, IssuedCertificate, JoinTokenParts, KeyAndRequest, Names, SpiffeSubject } from './pki.ts';
export { createKeyAndRequest } from './request.ts';
export { formatJoinToken, hashSecret, newSecret, parseJoinToken } from './token.ts';
