import { clip, isSandboxId, type SandboxId } from '@drover/foundation';
import type { SandboxEvent, SandboxEvents, StepFailure, StepPlace } from '../events/index.ts';
import { viewTextLength } from '../limits.ts';
import type { IdentityView, InitView, SandboxView, SessionView, TrustCheck } from './worldview.ts';

/** The view of a sandbox without events or checks. */
export function emptyView(sandboxId: SandboxId): SandboxView {
  return {
    sandboxId,
    session: { state: 'none', since: 0, attempts: 0, lastError: '', peerCommonName: '', thumbprint: '', address: '' },
    identity: { verdict: 'unknown', reason: '', message: '', since: 0 },
    init: { state: 'none', since: 0, startCount: 0, place: undefined, failure: undefined },
    checks: [],
  };
}

/** The sandbox whose view an event changes; undefined when it changes none. */
export function viewSubject(event: SandboxEvent): SandboxId | undefined {
  return isSandboxId(event.subject) ? event.subject : undefined;
}

/**
 * Applies an event to the view of its subject (I-35). A later event overrides an earlier one.
 * @param at the time of the event, milliseconds since the epoch
 */
export function applyEvent(view: SandboxView, event: SandboxEvent, at: number): SandboxView {
  switch (event.kind) {
    case 'session':
      return { ...view, session: applySession(view.session, event, at) };
    case 'identity':
      return { ...view, identity: applyIdentity(view.identity, event, at) };
    case 'init':
      return { ...view, init: applyInit(view.init, event, at) };
    default:
      return event satisfies never;
  }
}

/** I-34: a start has one AgentRegistered event, for its first registration. A later one only changes the view. */
export function isRepeated(view: SandboxView, event: SandboxEvent): boolean {
  return event.type === 'AgentRegistered' && view.identity.registeredStart === event.data.startCount;
}

type Of<Kind extends keyof SandboxEvents> = Extract<SandboxEvent, { readonly kind: Kind }>;

function applySession(session: SessionView, event: Of<'session'>, at: number): SessionView {
  switch (event.type) {
    case 'SessionConnecting': {
      // `lastError` explains the missing session until one is connected.
      const since = session.state === 'connecting' ? session.since : at;
      return { ...session, state: 'connecting', since, attempts: event.data.attempt };
    }
    case 'SessionConnected': {
      const { attempts, peerCommonName, thumbprint, address } = event.data;
      return { state: 'connected', since: at, attempts, lastError: '', peerCommonName: text(peerCommonName), thumbprint, address };
    }
    case 'SessionFailed': {
      const { attempts, reason, message } = event.data;
      return { ...session, state: 'failed', since: at, attempts, lastError: text(message === '' ? reason : message) };
    }
    case 'SessionBroken':
    case 'SessionDelayed':
      return { ...session, state: 'broken', since: at, lastError: text(event.data.message) };
    case 'SessionThrottled':
      return session;
    case 'SessionRenewed':
      return { ...session, thumbprint: event.data.thumbprint };
    default:
      return event satisfies never;
  }
}

function applyIdentity(identity: IdentityView, event: Of<'identity'>, at: number): IdentityView {
  const withVerdict = (verdict: IdentityView['verdict'], reason: IdentityView['reason'], message: string): IdentityView => {
    const since = identity.verdict === verdict && identity.reason === reason ? identity.since : at;
    return { ...identity, verdict, reason, message: text(message), since };
  };
  switch (event.type) {
    case 'AgentRegistered':
      // A refused registration does not change the verdict on a trusted peer. The session publishes AgentUntrusted if it rejects its peer.
      return { ...(event.data.ok ? withVerdict('trusted', '', '') : identity), registeredStart: event.data.startCount };
    case 'AgentTrusted':
      return withVerdict('trusted', '', '');
    case 'AgentUntrusted':
      return withVerdict(event.data.reason === 'revoked' ? 'revoked' : 'untrusted', event.data.reason, event.data.message);
    case 'IdentityRevoked':
      return withVerdict('revoked', 'revoked', 'its identity was revoked');
    case 'IdentityReinstated':
      return withVerdict('unknown', '', 'its identity was reinstated, and it has not registered again yet');
    case 'IdentityEvicted':
      return event.data.why === 'revoked'
        ? withVerdict('revoked', 'revoked', 'its identity was revoked')
        : withVerdict('unknown', '', 'its identity was removed from the registry');
    case 'IdentityRenewed':
    case 'ReapDegraded':
      return identity;
    default:
      return event satisfies never;
  }
}

function applyInit(init: InitView, event: Of<'init'>, at: number): InitView {
  switch (event.type) {
    case 'InitStarted':
      return { state: 'running', since: at, startCount: event.data.startCount, place: undefined, failure: undefined };
    case 'InitStepStarted':
    case 'InitStepCompleted':
    case 'InitStepFailed':
      // The state changes with InitCompleted or InitFailed only.
      return { ...init, place: placeOf(event.data) };
    case 'InitCompleted':
      return { state: 'completed', since: at, startCount: event.data.startCount, place: undefined, failure: undefined };
    case 'InitFailed':
      return { state: 'failed', since: at, startCount: event.data.startCount, place: placeOf(event.data), failure: failureOf(event.data) };
    default:
      return event satisfies never;
  }
}

function placeOf({ step, index, count }: StepPlace): StepPlace {
  return { step, index, count };
}

function failureOf({ reason, message, exitCode, stderr }: StepFailure): StepFailure {
  return {
    reason,
    message: text(message),
    ...(exitCode === undefined ? {} : { exitCode }),
    ...(stderr === undefined ? {} : { stderr }),
  };
}

/** Replaces all checks of the sources in `checks`. Of two checks with the same name and source, the later one counts. */
export function recordChecks(view: SandboxView, checks: readonly TrustCheck[]): SandboxView {
  const sources = new Set(checks.map(({ source }) => source));
  const latest = new Map(checks.map((check) => [`${check.source} ${check.check}`, { ...check, evidence: text(check.evidence) }]));
  return { ...view, checks: [...view.checks.filter(({ source }) => !sources.has(source)), ...latest.values()] };
}

/** Clips a text, which may come from an untrusted sandbox. */
function text(value: string): string {
  return clip(value, viewTextLength);
}
