import { newHostId } from '@drover/foundation';
import { api } from '@drover/protocol';
import { describe, expect, it } from 'vitest';
import type { Identity } from '../../model/identity.ts';
import { newSandbox } from '../../store/new-sandbox.ts';
import { sandboxRow } from '../../store/rows.ts';
import type { HostRow } from '../../model/host.ts';
import type { SandboxRow } from '../../model/sandbox.ts';
import { draft } from '../../store/testing/fixtures.ts';
import { emptyView } from '../../worldview/apply.ts';
import type { SessionView, TrustCheck } from '../../worldview/worldview.ts';
import { allChecks, checksNow } from './explain.ts';
import type { SandboxFacts } from '../convert/status.ts';

const [good, bad, next] = ['a'.repeat(64), 'b'.repeat(64), 'c'.repeat(64)];
const hostId = newHostId();
const row: SandboxRow = { ...sandboxRow(newSandbox(draft(), 0)), hostId, observed: 'running', address: '10.0.0.2' };
const alpha = { id: hostId, name: 'alpha', connected: true } as HostRow;
const registered: Identity = {
  thumbprint: good,
  nextThumbprint: next,
  sandboxId: row.id,
  project: row.project,
  name: row.name,
  commonName: row.name,
  registeredAt: 0,
  lastSeenAt: 0,
};
const connected: Partial<SessionView> = { state: 'connected', thumbprint: good, address: '10.0.0.2:9180' };

function facts(session: Partial<SessionView>, identity: Identity | undefined = registered, host: HostRow = alpha): SandboxFacts {
  const view = emptyView(row.id);
  return {
    host,
    identity,
    view: { ...view, session: { ...view.session, ...session } },
    live: { state: 'none', since: 0, attempts: 0, lastError: '' },
  };
}

describe('what is checked for whoever asks', () => {
  const cases: readonly (readonly [
    string,
    Partial<SandboxRow>,
    SandboxFacts,
    Partial<Record<TrustCheck['check'], TrustCheck['verdict']>>,
  ])[] = [
    ['all is well', {}, facts(connected), { thumbprint: 'pass', registry: 'pass', host: 'pass', 'peer-address': 'pass' }],
    ['it was renewed', {}, facts({ ...connected, thumbprint: next }), { thumbprint: 'pass' }],
    ['another certificate', {}, facts({ ...connected, thumbprint: bad }), { thumbprint: 'fail', registry: 'pass' }],
    ['no certificate', {}, facts({ ...connected, thumbprint: '' }), { thumbprint: 'fail' }],
    ['no session', {}, facts({ state: 'broken', thumbprint: bad }), { thumbprint: 'unknown', 'peer-address': 'unknown' }],
    ['evicted, and still there', {}, { ...facts(connected), identity: undefined }, { thumbprint: 'unknown', registry: 'fail' }],
    ['never registered', {}, { ...facts({}), identity: undefined }, { thumbprint: 'unknown', registry: 'unknown' }],
    ['revoked', { revokedAt: 1 }, { ...facts(connected), identity: undefined }, { registry: 'fail' }],
    ['another address', {}, facts({ ...connected, address: '10.0.0.3:9180' }), { 'peer-address': 'fail' }],
    ['no address', { address: '' }, facts(connected), { 'peer-address': 'unknown' }],
    ['no host', { hostId: undefined }, facts({}), { host: 'unknown' }],
    ['a host that is away', {}, facts({}, registered, { ...alpha, connected: false }), { host: 'unknown' }],
  ];
  it.each(cases)('%s', (_what, columns, known, expected) => {
    const made = checksNow({ ...row, ...columns }, known, 7);
    expect(Object.fromEntries(made.map(({ check, verdict }) => [check, verdict]))).toMatchObject(expected);
    for (const { evidence, at, source } of made) expect([evidence === '', at, source]).toEqual([false, 7, 'now']);
  });
});

describe('what explain shows', () => {
  const { UNKNOWN, PASS, FAIL } = api.TrustCheck_Verdict;
  const check = (name: TrustCheck['check'], source: TrustCheck['source'], verdict: TrustCheck['verdict']): TrustCheck => ({
    check: name,
    verdict,
    evidence: `${name} of ${source}`,
    at: 1,
    source,
  });

  it('every check that there is, in one order; what was never made says so', () => {
    const shown = allChecks([]);
    expect(shown.map(({ check: name }) => name)).toEqual([
      'chain',
      'validity',
      'eku',
      'cn',
      'san',
      'thumbprint',
      'registry',
      'host',
      'peer-address',
    ]);
    for (const one of shown) expect([one.verdict, one.evidence, one.madeAt]).toEqual([UNKNOWN, 'never made', undefined]);
  });

  it('each with what it found wherever it was made, what is known now first', () => {
    const shown = allChecks([check('registry', 'register', 'pass'), check('cn', 'session', 'fail'), check('registry', 'now', 'fail')]);
    expect(shown.filter(({ source }) => source !== '').map(({ check: name, source, verdict }) => [name, source, verdict])).toEqual([
      ['cn', 'session', FAIL],
      ['registry', 'now', FAIL],
      ['registry', 'register', PASS],
    ]);
    expect(shown).toHaveLength(10);
  });
});
