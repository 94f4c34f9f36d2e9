import type { X509Certificate } from 'node:crypto';
import { clip, type SandboxId } from '@drover/foundation';
import { clientAuth, hasKeyUsage, serverAuth, subjectOf, uriNamesOf, validityOf, type Names } from '@drover/pki';
import type { UntrustedReason } from '../../events/index.ts';
import type { Standing } from '../../identity/index.ts';
import type { TrustCheck, TrustCheckName } from '../../worldview/index.ts';

/** The peer's certificate in the TLS handshake, and the result of its verification by TLS. */
export interface ShownCertificate {
  /** Undefined: the peer showed none. */
  readonly certificate: X509Certificate | undefined;
  readonly authorized: boolean;
  /** OpenSSL's code of the first problem; empty when authorized. */
  readonly authorizationError: string;
}

/** The expected peer. */
export interface ExpectedPeer {
  readonly id: SandboxId;
  /** Canonical (I-5). */
  readonly commonName: string;
  readonly names: Names;
  readonly ca: X509Certificate;
  /** Milliseconds since the epoch. */
  readonly now: number;
}

/** The results of the checks of a certificate. A failed check does not end the connection (I-1). */
export interface PeerVerdict {
  /** SHA-256 of the certificate's DER, lower-case hex; empty without one. */
  readonly thumbprint: string;
  /** As in the certificate; empty without one. */
  readonly commonName: string;
  readonly certificate: X509Certificate | undefined;
  /** chain, validity, eku, cn and san. */
  readonly checks: readonly TrustCheck[];
}

/** Runs every check regardless of the other results: a failed chain must not hide a wrong name. */
export function judge(shown: ShownCertificate, expected: ExpectedPeer): PeerVerdict {
  const { certificate } = shown;
  const check = (name: TrustCheckName, passes: boolean, evidence: string): TrustCheck => ({
    check: name,
    verdict: passes ? 'pass' : 'fail',
    evidence,
    at: expected.now,
    source: 'session',
  });
  if (certificate === undefined) {
    const checks = (['chain', 'validity', 'eku', 'cn', 'san'] as const).map((name) => check(name, false, 'the peer showed no certificate'));
    return { thumbprint: '', commonName: '', certificate, checks };
  }
  const { from, to } = validityOf(certificate);
  const valid = from.getTime() <= expected.now && expected.now <= to.getTime();
  const usable = hasKeyUsage(certificate, serverAuth) && hasKeyUsage(certificate, clientAuth);
  const commonName = commonNameOf(certificate);
  const subject = subjectOf(certificate, expected.names);
  const uris = uriNamesOf(certificate);
  const checks = [
    check('chain', ...chainOf(shown, certificate, expected.ca, { valid, usable })),
    check('validity', valid, `valid from ${dateText(from)} to ${dateText(to)}`),
    check(
      'eku',
      usable,
      usable
        ? 'it may authenticate a server and a client'
        : `its extended key usages are [${clip((certificate.keyUsage ?? []).join(', '))}]`,
    ),
    check('cn', commonName === expected.commonName, `its CN is ${quoted(commonName)}, expected ${quoted(expected.commonName)}`),
    check(
      'san',
      subject?.kind === 'sandbox' && subject.id === expected.id,
      `its URI names are [${clip(uris.join(', '), 200)}], expected ${expected.names.sandbox(expected.id)}`,
    ),
  ];
  return { thumbprint: certificate.fingerprint256.replaceAll(':', '').toLowerCase(), commonName, certificate, checks };
}

/** TLS reports one problem only. If that is the leaf's dates or usages, which are checked separately, the chain is valid. */
function chainOf(
  { authorized, authorizationError }: ShownCertificate,
  certificate: X509Certificate,
  ca: X509Certificate,
  leaf: { readonly valid: boolean; readonly usable: boolean },
): readonly [boolean, string] {
  if (!certificate.checkIssued(ca) || !certificate.verify(ca.publicKey)) {
    return [false, `it was not issued by the CA of this control plane (${authorizationError || 'unknown issuer'})`];
  }
  const ofLeaf =
    (!leaf.valid && (authorizationError === 'CERT_HAS_EXPIRED' || authorizationError === 'CERT_NOT_YET_VALID')) ||
    (!leaf.usable && authorizationError === 'INVALID_PURPOSE');
  if (authorized || ofLeaf) return [true, 'it was issued by the CA of this control plane'];
  return [false, `it does not verify (${authorizationError})`];
}

/** A peer's certificate may have an unreadable date, which must not end the session (I-1). */
function dateText(date: Date): string {
  return Number.isNaN(date.getTime()) ? 'a date that cannot be read' : date.toISOString();
}

function commonNameOf(certificate: X509Certificate): string {
  const { CN } = certificate.toLegacyObject().subject as { readonly CN?: string | readonly string[] };
  // Several CNs count as none: Drover issues no such certificate.
  return typeof CN === 'string' ? CN : '';
}

/** The check of the certificate against the registry. */
export function registryCheck(verdict: PeerVerdict, standing: Standing | undefined, now: number): TrustCheck {
  const check = (result: TrustCheck['verdict'], evidence: string): TrustCheck => ({
    check: 'thumbprint',
    verdict: result,
    evidence,
    at: now,
    source: 'session',
  });
  const shown = verdict.thumbprint === '' ? 'no certificate' : verdict.thumbprint;
  if (standing === undefined) return check('unknown', `${shown} was shown, and the registry could not be read`);
  if (standing.revoked) return check('fail', `${shown} was shown; the identity of the sandbox is revoked`);
  const { identity } = standing;
  if (identity === undefined) return check('unknown', `${shown} was shown; nothing is registered for the sandbox`);
  if (isRegistered(verdict, standing)) return check('pass', `${shown} was shown, and is registered`);
  return check(standing.mayRegister ? 'unknown' : 'fail', `${shown} was shown; ${identity.thumbprint} is registered`);
}

function isRegistered({ thumbprint }: PeerVerdict, { identity }: Standing): boolean {
  return thumbprint !== '' && identity !== undefined && (identity.thumbprint === thumbprint || identity.nextThumbprint === thumbprint);
}

/** Whether expiry is the only failed check. TLS has proved that the peer holds the key. */
function hasOnlyExpired({ certificate, checks }: PeerVerdict): boolean {
  const [failed, ...more] = checks.filter(({ verdict }) => verdict !== 'pass');
  return more.length === 0 && failed?.check === 'validity' && certificate !== undefined && validityOf(certificate).to.getTime() < failed.at;
}

export type Decision =
  | { readonly kind: 'trusted' }
  /** The peer has to register first. `again`: its token is spent, so it receives another one (I-13). */
  | { readonly kind: 'register'; readonly again: boolean }
  | Untrusted;

export interface Untrusted {
  readonly kind: 'untrusted';
  readonly reason: UntrustedReason;
  /** A sentence for a person. */
  readonly message: string;
  /** The certificate has expired and is otherwise valid, as after a suspend of the machine: it may be renewed. */
  readonly expired?: boolean;
}

/**
 * Decides whether the peer is the sandbox (I-27). The session stays open in any case (I-1).
 * @param standing undefined when the registry could not be read
 */
export function decide(verdict: PeerVerdict, standing: Standing | undefined): Decision {
  const failed = (...names: readonly TrustCheckName[]): TrustCheck | undefined =>
    verdict.checks.find(({ check, verdict: result }) => names.includes(check) && result !== 'pass');
  const untrusted = (reason: UntrustedReason, message: string): Untrusted => ({ kind: 'untrusted', reason, message });

  if (standing?.revoked === true) return untrusted('revoked', 'the identity of the sandbox is revoked');
  const invalid = failed('chain', 'validity', 'eku');
  if (invalid !== undefined) {
    const refused = untrusted('certificate-invalid', `the certificate is not valid: ${invalid.evidence}`);
    return { ...refused, expired: standing !== undefined && isRegistered(verdict, standing) && hasOnlyExpired(verdict) };
  }
  if (standing === undefined) return untrusted('lookup-failed', 'the registry of identities could not be read');

  const registered = isRegistered(verdict, standing);
  const misnamed = failed('san', 'cn');
  if (standing.identity !== undefined && !registered && (!standing.mayRegister || misnamed !== undefined)) {
    return untrusted(
      'thumbprint-mismatch',
      `the certificate ${verdict.thumbprint} is not the registered one, ${standing.identity.thumbprint}`,
    );
  }
  if (misnamed !== undefined) {
    return untrusted(
      misnamed.check === 'cn' ? 'cn-mismatch' : 'certificate-invalid',
      `the certificate does not name the sandbox: ${misnamed.evidence}`,
    );
  }
  return registered ? { kind: 'trusted' } : { kind: 'register', again: !standing.mayRegister };
}

/** The names in an unknown certificate may have any length. */
function quoted(text: string): string {
  return JSON.stringify(clip(text));
}
