import { createHash, timingSafeEqual } from 'node:crypto';
import { isIPv4 } from 'node:net';
import { canonicalCommonName, clip, parseName, parseProject, type Name, type Project } from '@drover/foundation';
import type { IdentityStore } from '../store/index.ts';
import type { SandboxRow } from '../model/index.ts';
import type { TrustCheck, TrustCheckName } from '../worldview/index.ts';
import type { RegisterClaim, RegisterRefusal } from './claims.ts';

/** The names of a caller, from validated parts (I-8). */
export interface ClaimedNames {
  readonly project: Project;
  readonly name: Name;
  readonly commonName: string;
}

/** The names of a claim; undefined if they are invalid. */
export function claimedNames(claim: Pick<RegisterClaim, 'project' | 'name'>): ClaimedNames | undefined {
  try {
    const [project, name] = [parseProject(claim.project), parseName(claim.name)];
    return { project, name, commonName: canonicalCommonName(project, name) };
  } catch {
    // The evidence of the check contains the claimed names.
    return undefined;
  }
}

interface Checked {
  readonly checks: readonly TrustCheck[];
  /** The first failed check, in the order of I-14. */
  readonly refusal: RegisterRefusal | undefined;
}

/** Runs every cross-check of Register (I-14). @param row the sandbox's own record; undefined when there is none */
export function crossCheck(claim: RegisterClaim, names: ClaimedNames | undefined, row: SandboxRow | undefined, now: number): Checked {
  const checks: TrustCheck[] = [];
  let refusal: RegisterRefusal | undefined;
  const check = (name: TrustCheckName, passed: boolean, evidence: string, otherwise?: RegisterRefusal): void => {
    checks.push({ check: name, verdict: passed ? 'pass' : 'fail', evidence, at: now, source: 'register' });
    if (!passed) refusal ??= otherwise;
  };

  check('san', true, `the certificate is that of ${claim.sandboxId}`);
  const cn = commonNameRefusal(claim, names, row);
  refusal = cn;
  check('cn', cn === undefined, commonNameEvidence(claim, names, row));
  check('host', row?.hostId === claim.hostId, `the call came through ${quoted(claim.hostId)}; ${placeOf(row)}`, 'host-mismatch');
  check(
    'peer-address',
    addressMatches(claim, row),
    `the host saw it come from ${quoted(claim.peerAddress)}; its address is ${row === undefined || row.address === '' ? 'unknown' : row.address}`,
    'peer-address-mismatch',
  );
  return { checks, refusal };
}

export function addressMatches({ peerAddress }: RegisterClaim, row: SandboxRow | undefined): boolean {
  return row !== undefined && row.address !== '' && row.address === plainAddress(peerAddress);
}

/** The checks of the store's transaction, after every cross-check has passed. */
export function outcomeChecks(
  outcome: Awaited<ReturnType<IdentityStore['register']>>,
  thumbprint: string,
  now: number,
): readonly TrustCheck[] {
  const check = (name: TrustCheckName, verdict: TrustCheck['verdict'], evidence: string): TrustCheck => ({
    check: name,
    verdict,
    evidence,
    at: now,
    source: 'register',
  });
  if (outcome.kind === 'welcome') {
    return [
      check('thumbprint', 'pass', `${thumbprint} is registered`),
      check('registry', 'pass', outcome.again ? 'it was registered before' : 'it was registered with its bootstrap token'),
    ];
  }
  switch (outcome.why) {
    case 'token':
      return [check('registry', 'fail', `the token is not the unspent one of ${thumbprint}`)];
    case 'replay':
      return [
        check('thumbprint', 'fail', `${thumbprint} is not the registered certificate, nor one of a later start with its own unspent token`),
        check('registry', 'pass', 'the sandbox is registered'),
      ];
    case 'collision':
      return [check('thumbprint', 'fail', `${thumbprint} is registered for another sandbox`)];
    case 'revoked':
      return [check('registry', 'fail', 'the identity of the sandbox is revoked')];
    case 'unknown-sandbox':
      return [check('registry', 'fail', 'there is no such sandbox any more')];
    default:
      return outcome.why satisfies never;
  }
}

/** Compares in constant time, regardless of the lengths (I-9). */
export function sameText(a: string, b: string): boolean {
  return timingSafeEqual(digest(a), digest(b));
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

function commonNameRefusal(
  claim: RegisterClaim,
  names: ClaimedNames | undefined,
  row: SandboxRow | undefined,
): RegisterRefusal | undefined {
  if (names === undefined) return 'malformed-name';
  if (!sameText(claim.commonName, names.commonName)) return 'cn-mismatch';
  if (row === undefined || row.deletedAt !== undefined) return 'unknown-sandbox';
  return row.project === names.project && row.name === names.name ? undefined : 'record-mismatch';
}

function commonNameEvidence(
  { commonName, project, name }: RegisterClaim,
  names: ClaimedNames | undefined,
  row: SandboxRow | undefined,
): string {
  const claimed = names === undefined ? `project ${quoted(project)} and name ${quoted(name)}, which are invalid` : quoted(names.commonName);
  const recorded = row === undefined ? 'there is no such sandbox' : `the sandbox is ${quoted(canonicalCommonName(row.project, row.name))}`;
  return `the CN is ${quoted(commonName)}, the call claims ${claimed}; ${recorded}`;
}

function placeOf(row: SandboxRow | undefined): string {
  if (row === undefined) return 'there is no such sandbox';
  return row.hostId === undefined ? 'the sandbox is placed nowhere' : `the sandbox is placed on ${row.hostId}`;
}

/** An IPv6 listener reports IPv4 addresses in their mapped form (RFC 4291, section 2.5.5.2). */
function plainAddress(address: string): string {
  const mapped = address.toLowerCase().startsWith('::ffff:') ? address.slice('::ffff:'.length) : address;
  return isIPv4(mapped) ? mapped : address;
}

/** The text of an unauthenticated peer may have any length. */
function quoted(text: string): string {
  return JSON.stringify(clip(text));
}
