import { clip, isSandboxId, type SandboxId } from '@drover/foundation';
import type { SandboxEvent, SandboxEvents, StepFailure, StepPlace } from '../events/index.ts';
import { viewTextLength } from '../limits.ts';
import type { IdentityView, InitView, SandboxView, SessionView, TrustCheck } from './worldview.ts';

/** The view of a sandbox that nothing is known of. */
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
 * What an event makes of the view of its subject (I-35). What comes later beats what came before.
 * @param at when it happened, milliseconds since the epoch
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

/** I-34: a start has one AgentRegistered, for its first outcome; a later one changes the view only. */
export function isRepeated(view: SandboxView, event: SandboxEvent): boolean {
  return event.type === 'AgentRegistered' && view.identity.registeredStart === event.data.startCount;
}

type Of<Kind extends keyof SandboxEvents> = Extract<SandboxEvent, { readonly kind: Kind }>;

function applySession(session: SessionView, event: Of<'session'>, at: number): SessionView {
  switch (event.type) {
    case 'SessionConnecting': {
      // Why there is no session is worth knowing until there is one.
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
  const is = (verdict: IdentityView['verdict'], reason: IdentityView['reason'], message: string): IdentityView => {
    const since = identity.verdict === verdict && identity.reason === reason ? identity.since : at;
    return { ...identity, verdict, reason, message: text(message), since };
  };
  switch (event.type) {
    case 'AgentRegistered':
      // A refusal is nothing against a peer that is trusted already: the session says what becomes of its own (AgentUntrusted).
      return { ...(event.data.ok ? is('trusted', '', '') : identity), registeredStart: event.data.startCount };
    case 'AgentTrusted':
      return is('trusted', '', '');
    case 'AgentUntrusted':
      return is(event.data.reason === 'revoked' ? 'revoked' : 'untrusted', event.data.reason, event.data.message);
    case 'IdentityRevoked':
      return is('revoked', 'revoked', 'its identity was revoked');
    case 'IdentityReinstated':
      return is('unknown', '', 'its identity was reinstated, and it has not registered again yet');
    case 'IdentityEvicted':
      return event.data.why === 'revoked'
        ? is('revoked', 'revoked', 'its identity was revoked')
        : is('unknown', '', 'its identity was taken out of the registry');
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
      // How the plan ends is said by the event that ends it.
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

/** The checks of the sources that `checks` come from are replaced; of two of one name and source the later counts. */
export function recordChecks(view: SandboxView, checks: readonly TrustCheck[]): SandboxView {
  const sources = new Set(checks.map(({ source }) => source));
  const latest = new Map(checks.map((check) => [`${check.source} ${check.check}`, { ...check, evidence: text(check.evidence) }]));
  return { ...view, checks: [...view.checks.filter(({ source }) => !sources.has(source)), ...latest.values()] };
}

/** Much of it is in a sandbox's own words, and as long as it likes. */
function text(said: string): string {
  return clip(said, viewTextLength);
}
