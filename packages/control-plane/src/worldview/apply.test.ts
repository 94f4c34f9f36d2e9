import fc from 'fast-check';
import { newSandboxId } from '@drover/foundation';
import { describe, expect, it } from 'vitest';
import type { SandboxEvent, SandboxEvents } from '../events/typed.ts';
import { viewTextLength } from '../limits.ts';
import { applyEvent, emptyView, recordChecks, viewSubject } from './apply.ts';
import type { SandboxView, TrustCheck } from './worldview.ts';

const id = newSandboxId();
const untouched = emptyView(id);

type DataOf<Kind extends keyof SandboxEvents> = Partial<SandboxEvents[Kind]>;
/** `session({ SessionBroken: { message: 'gone' } })` */
const session = (of: DataOf<'session'>): SandboxEvent => event('session', of);
const identity = (of: DataOf<'identity'>): SandboxEvent => event('identity', of);
const init = (of: DataOf<'init'>): SandboxEvent => event('init', of);

function event(kind: string, of: object): SandboxEvent {
  const [[type, data] = []] = Object.entries(of);
  return { kind, type, subject: id, data } as unknown as SandboxEvent;
}

/** The events happen at 1, 2, 3, … */
function fold(events: readonly SandboxEvent[], from: SandboxView = untouched): SandboxView {
  return events.reduce((view, each, index) => applyEvent(view, each, index + 1), from);
}

const connected = { attempts: 2, peerCommonName: 'p.box', thumbprint: 'ab', address: '10.0.0.2', bootId: 'b' };
const place = { step: 'git', index: 2, count: 5 };
const failure = { reason: 'exit-code', message: 'git failed', exitCode: 3, stderr: 'fatal: no such branch' } as const;

describe('I-35: the view of the session', () => {
  const cases: readonly (readonly [string, readonly SandboxEvent[], Partial<SandboxView['session']>])[] = [
    ['before anything happened', [], { state: 'none', attempts: 0 }],
    ['being dialled', [session({ SessionConnecting: { attempt: 1 } })], { state: 'connecting', since: 1, attempts: 1 }],
    [
      'dialled again: `since` is the first attempt',
      [session({ SessionConnecting: { attempt: 1 } }), session({ SessionConnecting: { attempt: 2 } })],
      { state: 'connecting', since: 1, attempts: 2 },
    ],
    [
      'connected',
      [session({ SessionConnecting: { attempt: 2 } }), session({ SessionConnected: connected })],
      { state: 'connected', since: 2, attempts: 2, lastError: '', peerCommonName: 'p.box', thumbprint: 'ab', address: '10.0.0.2' },
    ],
    [
      'broken: with the error and the last peer',
      [session({ SessionConnected: connected }), session({ SessionBroken: { message: 'reset' } })],
      { state: 'broken', since: 2, lastError: 'reset', peerCommonName: 'p.box' },
    ],
    [
      'delayed: with the reason',
      [session({ SessionDelayed: { delayMs: 1, message: 'it ended the server' } })],
      { state: 'broken', since: 1, lastError: 'it ended the server' },
    ],
    [
      'renewed: with the new certificate',
      [session({ SessionConnected: connected }), session({ SessionRenewed: { thumbprint: 'cd' } })],
      { state: 'connected', since: 1, thumbprint: 'cd', peerCommonName: 'p.box' },
    ],
    [
      'dialled after a break: the error stays until it is connected',
      [session({ SessionBroken: { message: 'reset' } }), session({ SessionConnecting: { attempt: 1 } })],
      { state: 'connecting', since: 2, lastError: 'reset' },
    ],
    [
      'connected after a break',
      [session({ SessionBroken: { message: 'reset' } }), session({ SessionConnected: connected })],
      { state: 'connected', lastError: '' },
    ],
    [
      'given up',
      [session({ SessionFailed: { attempts: 9, reason: 'no-address', message: 'it has no address' } })],
      { state: 'failed', attempts: 9, lastError: 'it has no address' },
    ],
    [
      'given up without a sentence',
      [session({ SessionFailed: { attempts: 9, reason: 'fd-leak-ceiling', message: '' } })],
      { state: 'failed', lastError: 'fd-leak-ceiling' },
    ],
  ];
  it.each(cases)('%s', (_what, events, expected) => {
    expect(fold(events).session).toMatchObject(expected);
  });
});

describe('I-35: the view of the identity', () => {
  const registered = { ok: true, thumbprint: 'ab', startCount: 1, message: '' };
  const mismatch = { reason: 'cn-mismatch', message: 'it says q.box', thumbprint: 'cd' } as const;
  const cases: readonly (readonly [string, readonly SandboxEvent[], Partial<SandboxView['identity']>])[] = [
    ['before anything happened', [], { verdict: 'unknown' }],
    ['registered', [identity({ AgentRegistered: registered })], { verdict: 'trusted', since: 1 }],
    [
      'trusted again: `since` is the first time',
      [identity({ AgentTrusted: { thumbprint: 'ab' } }), identity({ AgentTrusted: { thumbprint: 'ab' } })],
      { verdict: 'trusted', since: 1 },
    ],
    [
      'not the sandbox',
      [identity({ AgentTrusted: { thumbprint: 'ab' } }), identity({ AgentUntrusted: mismatch })],
      { verdict: 'untrusted', reason: 'cn-mismatch', message: 'it says q.box', since: 2 },
    ],
    [
      'trusted after all',
      [identity({ AgentUntrusted: mismatch }), identity({ AgentTrusted: { thumbprint: 'ab' } })],
      { verdict: 'trusted', reason: '', message: '', since: 2 },
    ],
    ['revoked', [identity({ AgentUntrusted: { ...mismatch, reason: 'revoked' } })], { verdict: 'revoked', reason: 'revoked' }],
    ['revoked in the registry', [identity({ IdentityEvicted: { thumbprint: 'ab', why: 'revoked' } })], { verdict: 'revoked' }],
    ['revoked without ever having registered', [identity({ IdentityRevoked: {} })], { verdict: 'revoked' }],
    ['reinstated', [identity({ IdentityRevoked: {} }), identity({ IdentityReinstated: {} })], { verdict: 'unknown', since: 2 }],
    [
      'evicted',
      [identity({ AgentRegistered: registered }), identity({ IdentityEvicted: { thumbprint: 'ab', why: 'evicted' } })],
      { verdict: 'unknown', since: 2 },
    ],
    [
      'a refused registration of another peer: the trusted peer stays trusted',
      [identity({ AgentTrusted: { thumbprint: 'ab' } }), identity({ AgentRegistered: { ...registered, ok: false, message: 'replay' } })],
      { verdict: 'trusted', since: 1 },
    ],
  ];
  it.each(cases)('%s', (_what, events, expected) => {
    expect(fold(events).identity).toMatchObject(expected);
  });
});

describe('I-35: the view of init', () => {
  const started = init({ InitStarted: { count: 5, startCount: 2 } });
  const cases: readonly (readonly [string, readonly SandboxEvent[], Partial<SandboxView['init']>])[] = [
    ['before anything happened', [], { state: 'none' }],
    ['started', [started], { state: 'running', since: 1, startCount: 2, place: undefined }],
    ['at a step', [started, init({ InitStepStarted: place })], { state: 'running', since: 1, place }],
    [
      'failed at a step',
      [
        started,
        init({ InitStepFailed: { ...place, ...failure, durationMs: 5 } }),
        init({ InitFailed: { ...place, ...failure, startCount: 2 } }),
      ],
      { state: 'failed', since: 3, startCount: 2, place, failure },
    ],
    [
      'completed',
      [started, init({ InitStepStarted: place }), init({ InitCompleted: { count: 5, durationMs: 9, startCount: 2 } })],
      { state: 'completed', since: 3, place: undefined, failure: undefined },
    ],
    [
      'started again: the failure is cleared',
      [init({ InitFailed: { ...place, ...failure, startCount: 1 } }), started],
      { state: 'running', startCount: 2, place: undefined, failure: undefined },
    ],
  ];
  it.each(cases)('%s', (_what, events, expected) => {
    expect(fold(events).init).toMatchObject(expected);
  });
});

describe('trust checks', () => {
  const check = (name: TrustCheck['check'], source: TrustCheck['source'], evidence: string): TrustCheck => ({
    check: name,
    verdict: 'pass',
    evidence,
    at: 1,
    source,
  });

  it('replace the earlier checks of the same source, and keep the others', () => {
    const first = recordChecks(untouched, [
      check('cn', 'session', 'old'),
      check('eku', 'session', 'old'),
      check('host', 'register', 'old'),
    ]);
    const second = recordChecks(first, [check('cn', 'session', 'new')]);
    expect(second.checks.map(({ check: name, source, evidence }) => [name, source, evidence])).toEqual([
      ['host', 'register', 'old'],
      ['cn', 'session', 'new'],
    ]);
  });

  it('of one name and source: the last one counts', () => {
    const view = recordChecks(untouched, [check('cn', 'session', 'a'), check('cn', 'session', 'b'), check('cn', 'register', 'c')]);
    expect(view.checks.map(({ evidence }) => evidence)).toEqual(['b', 'c']);
  });
});

const anyText = fc.oneof(fc.string(), fc.string({ minLength: viewTextLength, maxLength: viewTextLength * 2, unit: 'binary' }));
const anyPlace = fc.record({ step: fc.string(), index: fc.nat(), count: fc.nat() });
const anyFailure = fc.record({
  reason: fc.constantFrom('exit-code', 'timeout', 'spawn-failed', 'io-error', 'transport-error', 'protocol-error', 'identity-untrusted'),
  message: anyText,
});
const of = (kind: string, type: string, data: fc.Arbitrary<object>): fc.Arbitrary<SandboxEvent> =>
  data.map((value) => ({ kind, type, subject: id, data: value }) as unknown as SandboxEvent);
const both = (a: fc.Arbitrary<object>, b: fc.Arbitrary<object>): fc.Arbitrary<object> =>
  fc.tuple(a, b).map(([one, other]) => ({ ...one, ...other }));
const count = fc.record({ startCount: fc.nat() });

/** Any event of I-34 with arbitrary data. */
const anyEvent = fc.oneof(
  of('session', 'SessionConnecting', fc.record({ attempt: fc.nat() })),
  of(
    'session',
    'SessionConnected',
    fc.record({ attempts: fc.nat(), peerCommonName: anyText, thumbprint: fc.string(), address: fc.string(), bootId: fc.string() }),
  ),
  of('session', 'SessionFailed', fc.record({ attempts: fc.nat(), reason: fc.string(), message: anyText })),
  of('session', 'SessionBroken', fc.record({ message: anyText })),
  of('session', 'SessionDelayed', fc.record({ delayMs: fc.nat(), message: anyText })),
  of('session', 'SessionRenewed', fc.record({ thumbprint: fc.string() })),
  of('identity', 'AgentRegistered', both(count, fc.record({ ok: fc.boolean(), thumbprint: fc.string(), message: anyText }))),
  of(
    'identity',
    'AgentUntrusted',
    fc.record({ reason: fc.constantFrom('revoked', 'cn-mismatch', 'register-failed'), message: anyText, thumbprint: fc.string() }),
  ),
  of('identity', 'AgentTrusted', fc.record({ thumbprint: fc.string() })),
  of(
    'identity',
    'IdentityEvicted',
    fc.record({ thumbprint: fc.string(), why: fc.constantFrom('destroyed', 'evicted', 'revoked', 'reaped') }),
  ),
  of('identity', 'IdentityRevoked', fc.constant({})),
  of('identity', 'IdentityReinstated', fc.constant({})),
  of('identity', 'IdentityRenewed', fc.record({ thumbprint: fc.string() })),
  of('identity', 'ReapDegraded', fc.record({ attempts: fc.nat(), message: anyText })),
  of('init', 'InitStarted', both(count, fc.record({ count: fc.nat() }))),
  of('init', 'InitStepStarted', anyPlace),
  of('init', 'InitStepCompleted', both(anyPlace, fc.record({ durationMs: fc.nat(), exitCode: fc.integer() }))),
  of('init', 'InitStepFailed', both(both(anyPlace, anyFailure), fc.record({ durationMs: fc.nat() }))),
  of('init', 'InitCompleted', both(count, fc.record({ count: fc.nat(), durationMs: fc.nat() }))),
  of('init', 'InitFailed', both(both(anyPlace, anyFailure), count)),
);

/** Events that replace the whole part of a view, with that part. */
const replacesPart: Readonly<Record<string, 'session' | 'identity' | 'init'>> = {
  SessionConnected: 'session',
  AgentTrusted: 'identity',
  InitStarted: 'init',
  InitCompleted: 'init',
  InitFailed: 'init',
};

describe('I-35: any events, in any order', () => {
  it('produce a deterministic view that can be stored as JSON', () => {
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 50 }), (events) => {
        const view = fold(events);
        expect(fold(events)).toEqual(view);
        expect(JSON.parse(JSON.stringify(view))).toEqual(view);
        for (const value of [
          view.session.lastError,
          view.session.peerCommonName,
          view.identity.message,
          view.init.failure?.message ?? '',
        ]) {
          expect(value.length).toBeLessThanOrEqual(viewTextLength + 1);
        }
      }),
    );
  });

  it('change only the part of their kind', () => {
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 20 }), anyEvent, (before, next) => {
        const was = fold(before);
        const is = applyEvent(was, next, 99);
        for (const part of ['session', 'identity', 'init'] as const) if (part !== next.kind) expect(is[part]).toBe(was[part]);
      }),
    );
  });

  it('override earlier ones: an event that replaces its part leaves nothing of the earlier part', () => {
    const replacing = anyEvent.filter(({ type }) => replacesPart[type] !== undefined);
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 20 }), replacing, (before, last) => {
        const part = replacesPart[last.type] ?? 'session';
        // `since` and `registeredStart` also depend on earlier events.
        const partOf = (view: SandboxView): unknown => ({ ...view[part], since: 0, registeredStart: 0 });
        expect(partOf(applyEvent(fold(before), last, 99))).toEqual(partOf(applyEvent(untouched, last, 99)));
      }),
    );
  });

  it('can be applied twice: a watcher whose snapshot is newer than its events reaches the same states', () => {
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 20 }), fc.nat(20), (events, split) => {
        const end = fold(events);
        const again = events.slice(split).reduce((view, each, index) => applyEvent(view, each, split + index + 1), end);
        const states = ({ session: s, identity: i, init: n }: SandboxView): unknown => [
          s.state,
          s.attempts,
          i.verdict,
          i.reason,
          n.state,
          n.startCount,
        ];
        expect(states(again)).toEqual(states(end));
      }),
    );
  });

  it('change no view if they are about a replica', () => {
    expect(viewSubject({ kind: 'identity', type: 'ReapDegraded', subject: 'replica-1', data: { attempts: 3, message: '' } })).toBe(
      undefined,
    );
    expect(viewSubject(session({ SessionBroken: { message: '' } }))).toBe(id);
  });
});
