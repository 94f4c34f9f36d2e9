import { X509Certificate } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { newSandboxId, parseName, parseProject, type SandboxId } from '@drover/foundation';
import { clientAuth, namesOf, openCertificateAuthority, serverAuth, type CertificateAuthority } from '@drover/pki';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Identity } from '../../model/identity.ts';
import type { Standing } from '../../identity/claims.ts';
import type { TrustCheckName } from '../../worldview/worldview.ts';
import { issue, signByHand, type Credentials } from '../../sandbox-facing/testing/certificates.ts';
import { decide, judge, registryCheck, type PeerVerdict } from './trust.ts';

const checkNames = ['chain', 'validity', 'eku', 'cn', 'san'] as const;

function verdict(failing: readonly TrustCheckName[], thumbprint = 'aa'): PeerVerdict {
  const checks = checkNames.map((check) => ({
    check,
    verdict: failing.includes(check) ? ('fail' as const) : ('pass' as const),
    evidence: `about ${check}`,
    at: 0,
    source: 'session' as const,
  }));
  return { thumbprint, commonName: 'red.box', certificate: undefined, checks };
}

function identity(thumbprint: string, nextThumbprint?: string): Identity {
  const [project, name] = [parseProject('red'), parseName('box')];
  return { thumbprint, nextThumbprint, sandboxId: newSandboxId(), project, name, commonName: 'red.box', registeredAt: 0, lastSeenAt: 0 };
}

/** Every row that a sandbox can have when the certificate `aa` is presented. */
const rows = { none: undefined, same: identity('aa'), next: identity('bb', 'aa'), other: identity('bb', 'cc') };
const standings = Object.entries(rows).flatMap(([row, found]) =>
  [false, true].flatMap((mayRegister) =>
    [false, true].map((revoked) => ({
      row: row as keyof typeof rows,
      standing: { identity: found, mayRegister, revoked } satisfies Standing,
    })),
  ),
);
const subsets = Array.from({ length: 2 ** checkNames.length }, (_, bits) => checkNames.filter((_name, i) => (bits & (1 << i)) !== 0));

describe('I-27: the decision', () => {
  it.each(subsets.map((failing) => [failing.join('+') || 'nothing', failing] as const))(
    'with %s failing, for every standing',
    (_, failing) => {
      const invalid = failing.some((name) => name === 'chain' || name === 'validity' || name === 'eku');
      const misnamed = failing.includes('cn') || failing.includes('san');
      for (const { row, standing } of standings) {
        const { mayRegister, revoked } = standing;
        const decision = decide(verdict(failing), standing);
        const decided =
          decision.kind === 'untrusted'
            ? decision.reason
            : decision.kind === 'register'
              ? `register${decision.again ? ' again' : ''}`
              : 'trusted';
        // The conditions of each outcome, independent of the function's order.
        const possible = {
          revoked,
          'certificate-invalid': !revoked && (invalid || (failing.includes('san') && !failing.includes('cn') && row !== 'other')),
          'thumbprint-mismatch': !revoked && !invalid && row === 'other' && (!mayRegister || misnamed),
          'cn-mismatch': !revoked && !invalid && failing.includes('cn') && row !== 'other',
          trusted: failing.length === 0 && !revoked && (row === 'same' || row === 'next'),
          register: failing.length === 0 && !revoked && mayRegister && (row === 'none' || row === 'other'),
          'register again': failing.length === 0 && !revoked && !mayRegister && row === 'none',
        };
        expect({ row, standing, decided: [decided] }).toEqual({
          row,
          standing,
          decided: Object.entries(possible).flatMap(([name, is]) => (is ? [name] : [])),
        });
      }
    },
  );

  it('without a registry is lookup-failed, unless the certificate alone decides', () => {
    expect(decide(verdict([]), undefined)).toMatchObject({ kind: 'untrusted', reason: 'lookup-failed' });
    expect(decide(verdict(['cn']), undefined)).toMatchObject({ kind: 'untrusted', reason: 'lookup-failed' });
    expect(decide(verdict(['chain']), undefined)).toMatchObject({ kind: 'untrusted', reason: 'certificate-invalid' });
  });

  it.each([
    ['is registered', rows.same, false, 'pass'],
    ['is registered next', rows.next, false, 'pass'],
    ['is not the registered one', rows.other, false, 'fail'],
    ['belongs to a new start', rows.other, true, 'unknown'],
    ['is not registered yet', rows.none, true, 'unknown'],
  ] as const)('has a check of the thumbprint when the certificate %s', (_, found, mayRegister, result) => {
    expect(registryCheck(verdict([]), { identity: found, mayRegister, revoked: false }, 5)).toMatchObject({
      check: 'thumbprint',
      verdict: result,
      at: 5,
    });
  });

  it('has a check of the thumbprint when the identity is revoked or the registry is unreadable', () => {
    expect(registryCheck(verdict([]), { identity: rows.same, mayRegister: true, revoked: true }, 5).verdict).toBe('fail');
    expect(registryCheck(verdict([]), undefined, 5).verdict).toBe('unknown');
  });
});

describe('the checks of a certificate', () => {
  const names = namesOf('drover.test');
  let directory: string;
  let ca: CertificateAuthority;
  let id: SandboxId;

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'drover-trust-'));
    ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    id = newSandboxId();
  });
  afterAll(async () => await rm(directory, { recursive: true, force: true }));

  function failing({ certificatePem }: Pick<Credentials, 'certificatePem'>, authorizationError = '', now = Date.now()): readonly string[] {
    const { checks } = judge(
      { certificate: new X509Certificate(certificatePem), authorized: authorizationError === '', authorizationError },
      { id, commonName: 'red.box', names, ca: new X509Certificate(ca.caPem), now },
    );
    expect(checks.map(({ check }) => check)).toEqual(checkNames);
    return checks.filter((check) => check.verdict !== 'pass').map(({ check }) => check);
  }
  const good = async (): Promise<Credentials> => await issue(async (csr) => await ca.signSandbox(id, 'red.box', csr));

  it('all pass for a certificate of the CA', async () => {
    expect(failing(await good())).toEqual([]);
  });

  it('fail independently, each with its evidence', async () => {
    const day = 86_400_000;
    expect(failing(await good(), 'CERT_HAS_EXPIRED', Date.now() + 2 * day)).toEqual(['validity']);
    expect(failing(await good(), 'CERT_NOT_YET_VALID', Date.now() - day)).toEqual(['validity']);
    expect(failing(await issue(async (csr) => await ca.signSandbox(id, 'red.other', csr)))).toEqual(['cn']);
    expect(failing(await issue(async (csr) => await ca.signSandbox(newSandboxId(), 'red.box', csr)))).toEqual(['san']);
    const uris = [names.sandbox(id)];
    expect(failing(await signByHand(ca, directory, { commonNames: ['red.box'], uris, usages: [clientAuth] }), 'INVALID_PURPOSE')).toEqual([
      'eku',
    ]);
    expect(failing(await signByHand(ca, directory, { commonNames: ['red.box'], uris, usages: [serverAuth] }))).toEqual(['eku']);
    expect(
      failing(await signByHand(ca, directory, { commonNames: ['red.box', 'red.box'], uris, usages: [serverAuth, clientAuth] })),
    ).toEqual(['cn']);
    expect(
      failing(await signByHand(ca, directory, { commonNames: ['red.box'], uris: [...uris, ...uris], usages: [serverAuth, clientAuth] })),
    ).toEqual(['san']);
  });

  it('I-27: distinguish a certificate that has only expired, so that it can be renewed', async () => {
    const day = 86_400_000;
    const offered = async (
      make: Promise<Credentials>,
      now: number,
      more: { readonly revoked?: boolean; readonly other?: boolean } = {},
    ) => {
      const { certificatePem, thumbprint } = await make;
      const verdict = judge(
        { certificate: new X509Certificate(certificatePem), authorized: false, authorizationError: 'CERT_HAS_EXPIRED' },
        { id, commonName: 'red.box', names, ca: new X509Certificate(ca.caPem), now },
      );
      const identity = { ...rows.same, thumbprint: more.other === true ? 'ff' : thumbprint, nextThumbprint: undefined };
      const decision = decide(verdict, { identity, mayRegister: false, revoked: more.revoked === true });
      expect(decision.kind).toBe('untrusted');
      return decision.kind === 'untrusted' && decision.expired === true;
    };
    const late = Date.now() + 2 * day;
    expect(await offered(good(), late)).toBe(true);
    expect(await offered(good(), Date.now() - day)).toBe(false);
    expect(await offered(good(), late, { revoked: true })).toBe(false);
    expect(await offered(good(), late, { other: true })).toBe(false);
    expect(
      await offered(
        issue(async (csr) => await ca.signSandbox(id, 'red.other', csr)),
        late,
      ),
    ).toBe(false);
    expect(
      await offered(
        issue(async (csr) => await ca.signSandbox(newSandboxId(), 'red.box', csr)),
        late,
      ),
    ).toBe(false);
  });

  it('attribute no other TLS error to the leaf', async () => {
    expect(failing(await good(), 'CERT_HAS_EXPIRED')).toEqual(['chain']);
    expect(failing(await good(), 'CERT_SIGNATURE_FAILURE')).toEqual(['chain']);
  });

  it('fail on the chain for an authority of the same name with another key', async () => {
    const other = join(directory, 'other');
    const foreign = await openCertificateAuthority(other, { trustDomain: 'drover.test' });
    const certificate = await issue(async (csr) => await foreign.signSandbox(id, 'red.box', csr));
    expect(failing(certificate, 'UNABLE_TO_VERIFY_LEAF_SIGNATURE')).toEqual(['chain']);
    expect(failing(certificate)).toEqual(['chain']);
  });

  it('reach a verdict on any certificate that a peer may present (I-1)', async () => {
    const { raw } = new X509Certificate((await good()).certificatePem);
    const authority = new X509Certificate(ca.caPem);
    let shown = 0;
    for (let at = 0; at < raw.length; at++) {
      for (const byte of [0, 0xff, 0x20, 0x0c, (raw[at] ?? 0) ^ 1, (raw[at] ?? 0) ^ 0x80]) {
        const der = Buffer.from(raw);
        der[at] = byte;
        let certificate: X509Certificate;
        try {
          certificate = new X509Certificate(der);
        } catch {
          // No handshake succeeds with it.
          continue;
        }
        shown++;
        const { checks } = judge(
          { certificate, authorized: false, authorizationError: 'UNABLE_TO_VERIFY_LEAF_SIGNATURE' },
          { id, commonName: 'red.box', names, ca: authority, now: Date.now() },
        );
        expect(checks.map(({ check }) => check)).toEqual(checkNames);
      }
    }
    expect(shown).toBeGreaterThan(500);
  });

  it('all fail without a certificate', () => {
    const shown = { certificate: undefined, authorized: false, authorizationError: '' };
    const { checks, thumbprint } = judge(shown, { id, commonName: 'red.box', names, ca: new X509Certificate(ca.caPem), now: 0 });
    expect(checks.map((check) => check.verdict)).toEqual(['fail', 'fail', 'fail', 'fail', 'fail']);
    expect(thumbprint).toBe('');
  });
});
