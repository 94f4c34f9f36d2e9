import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { api } from '@drover/protocol';
import { type Identity, containmentActions, currentStart, sandboxState, type HostRow, type SandboxRow } from '../../model/index.ts';
import type { SessionStatus } from '../../sessions/index.ts';
import type { SandboxStateName } from '@drover/protocol';
import type { InitView, SandboxView, TrustCheck } from '../../worldview/index.ts';

/** What a message about a sandbox shows beside its row. */
export interface SandboxFacts {
  readonly host: HostRow | undefined;
  readonly view: SandboxView;
  /** Its row in the registry. */
  readonly identity: Identity | undefined;
  /** The status of this replica's session, if it has one. */
  readonly live: SessionStatus;
}

/** The states in which init can respond. A pause ends a session without an event (I-24). */
const hasInit: ReadonlySet<SandboxStateName> = new Set<SandboxStateName>(['starting', 'running', 'stopping']);

export function sessionToWire(row: SandboxRow, { host, view: { session }, live }: SandboxFacts): api.SessionStatus {
  if (!hasInit.has(sandboxState(row).state)) return create(api.SessionStatusSchema, { state: 'none' });
  const message = create(api.SessionStatusSchema, {
    state: session.state,
    attempts: session.attempts,
    lastError: session.lastError,
    peerCommonName: session.peerCommonName,
    peerThumbprint: session.thumbprint,
    peerAddress: session.address,
    ...(session.since > 0 ? { since: timestampFromMs(session.since) } : {}),
  });
  if (session.state === 'connected' && host?.connected === false) {
    // The replica that held it cannot report its end: the stream that carried it has ended.
    message.state = 'broken';
    message.lastError = `its host ${host.name} is not connected`;
    if (host.downSince !== undefined) message.since = timestampFromMs(host.downSince);
  } else if (session.state === 'connecting' && live.state === 'connecting' && live.lastError !== '') {
    // A failed attempt is not an event; the dial goes on.
    message.lastError = live.lastError;
    message.attempts = Math.max(message.attempts, live.attempts);
  }
  return message;
}

/** Whether the dial of its session was given up while it runs. */
function isLost(row: SandboxRow, session: SandboxView['session']): boolean {
  return session.state === 'failed' && hasInit.has(sandboxState(row).state);
}

export function identityStatusToWire(row: SandboxRow, { view, identity }: SandboxFacts): api.IdentityStatus {
  return create(api.IdentityStatusSchema, {
    ...verdictOf(row, view, identity !== undefined),
    ...(identity === undefined
      ? {}
      : {
          thumbprint: identity.thumbprint,
          commonName: identity.commonName,
          registeredAt: timestampFromMs(identity.registeredAt),
          lastSeenAt: timestampFromMs(identity.lastSeenAt),
        }),
  });
}

/** The verdict. The sandbox's row and the registry are newer than the last session's finding. */
function verdictOf(
  row: SandboxRow,
  { identity: { verdict, reason, message }, session }: SandboxView,
  registered: boolean,
): { readonly verdict: SandboxView['identity']['verdict']; readonly reason: string; readonly message: string } {
  if (row.revokedAt !== undefined) {
    return { verdict: 'revoked', reason: 'revoked', message: 'its identity was revoked; `drover sandbox release` lifts that' };
  }
  if (verdict === 'revoked')
    return { verdict: 'unknown', reason: '', message: 'its identity was reinstated, and it has not registered again yet' };
  // Trust is a property of the peer of a session: nothing is known about the peer of a lost one.
  if (verdict === 'trusted' && isLost(row, session)) {
    return { verdict: 'unknown', reason: 'session-lost', message: `its session is lost, and is redialled: ${session.lastError}` };
  }
  if (verdict === 'trusted' && !registered) return { verdict: 'unknown', reason: '', message: 'it is no longer in the registry' };
  return { verdict, reason, message };
}

export function initToWire(row: SandboxRow, { view: { init } }: SandboxFacts): api.InitStatus {
  // A new start was requested or has begun, and its init plan has not.
  if (init.startCount < currentStart(row)) return create(api.InitStatusSchema, { state: 'none' });
  return initStatus(init);
}

function initStatus({ state, since, place, failure }: InitView): api.InitStatus {
  return create(api.InitStatusSchema, {
    state,
    ...(since > 0 ? { since: timestampFromMs(since) } : {}),
    ...(place === undefined ? {} : { step: place.index, count: place.count, stepName: place.step }),
    ...(failure === undefined ? {} : { reason: failure.reason, stderr: failure.stderr ?? '' }),
    ...(failure?.exitCode === undefined ? {} : { exitCode: failure.exitCode }),
  });
}

/** The containments that are in force (I-4), with their records. */
export function containmentToWire(row: SandboxRow): api.Containment {
  return create(api.ContainmentSchema, {
    networkCut: row.containment['cut-network'] !== undefined,
    paused: row.containment.pause !== undefined,
    killed: row.containment.kill !== undefined,
    revoked: row.containment.revoke !== undefined,
    records: containmentActions.flatMap((action) => {
      const record = row.containment[action];
      return record === undefined ? [] : [{ action, by: record.by, at: timestampFromMs(record.at), reason: record.reason }];
    }),
  });
}

export function identityToWire(identity: Identity): api.Identity {
  return create(api.IdentitySchema, {
    sandboxId: identity.sandboxId,
    project: identity.project,
    name: identity.name,
    commonName: identity.commonName,
    thumbprint: identity.thumbprint,
    registeredAt: timestampFromMs(identity.registeredAt),
    lastSeenAt: timestampFromMs(identity.lastSeenAt),
  });
}

const Verdict = api.TrustCheck_Verdict;
const verdicts = { pass: Verdict.PASS, fail: Verdict.FAIL, unknown: Verdict.UNKNOWN } as const;

export function checkToWire({ check, verdict, evidence, at, source }: TrustCheck): api.TrustCheck {
  return create(api.TrustCheckSchema, { check, verdict: verdicts[verdict], evidence, source, madeAt: timestampFromMs(at) });
}
