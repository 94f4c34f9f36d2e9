import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { api, sandbox } from '@drover/protocol';
import { describe, expect, test } from 'vitest';
import { eventText } from '../system/event-text.ts';
import { details } from './details.ts';
import { initText, planFailure } from './init-text.ts';
import { listColumns } from './show.ts';

const ago = (seconds: number) => timestampFromMs(Date.now() - seconds * 1_000);
const failed = {
  state: 'failed',
  step: 4,
  count: 5,
  stepName: 'post-init',
  reason: 'exit-code',
  exitCode: 3,
  stderr: 'looking\nthe database \u001b[31mis not there\n',
};

function box(init: MessageInitShape<typeof api.SandboxSchema> = {}): api.Sandbox {
  return create(api.SandboxSchema, { id: 'sb_1', project: 'lab', name: 'web', state: sandbox.SandboxState.RUNNING, ...init });
}

const rows = (row: api.Sandbox): Record<string, string> =>
  Object.fromEntries(
    details(row)
      .filter((line) => /^[a-z ]+: /.test(line))
      .map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1).trim()]),
  );

describe('sandbox get shows', () => {
  test('the identity: name, verdict, thumbprint, registered, last seen', () => {
    const thumbprint = 'ab'.repeat(32);
    const identity = { commonName: 'lab.web', verdict: 'trusted', thumbprint, registeredAt: ago(300), lastSeenAt: ago(2) };
    expect(rows(box({ identity }))).toMatchObject({
      identity: 'lab.web, trusted',
      thumbprint,
      registered: '5m ago',
      'last seen': '2s ago',
    });
  });

  test('why it is not trusted', () => {
    const identity = { commonName: 'lab.web', verdict: 'untrusted', reason: 'cn-mismatch', message: 'the peer says lab.db' };
    expect(rows(box({ identity }))).toMatchObject({ identity: 'lab.web, untrusted (cn-mismatch): the peer says lab.db' });
  });

  test('the session: state, since when, attempts, and why not', () => {
    expect(rows(box({ session: { state: 'connected', since: ago(60), attempts: 1 } }))).toMatchObject({ session: 'connected for 60s' });
    const broken = { state: 'broken', since: ago(12), attempts: 3, lastError: 'connection refused' };
    expect(rows(box({ session: broken }))).toMatchObject({ session: 'broken for 12s, 3 attempts: connection refused' });
  });

  test('the init plan: its step, its end, or where it failed with the end of its stderr, of which nothing reaches the terminal', () => {
    expect(initText(box({ init: { state: 'running', step: 2, count: 5, stepName: 'git' } }).init)).toBe('step 2 of 5, git');
    expect(initText(box({ init: { state: 'completed' } }).init)).toBe('completed');
    expect(initText(box().init)).toBe('');
    const lines = details(box({ init: failed }));
    const at = lines.findIndex((line) => line.startsWith('init:'));
    expect(lines.slice(at, at + 3)).toEqual([
      'init:        failed at post-init, exit 3',
      '  | looking',
      '  | the database  [31mis not there',
    ]);
    expect(initText(create(api.InitStatusSchema, { ...failed, reason: 'timeout' }))).toBe('failed at post-init, it took too long');
    expect(initText(create(api.InitStatusSchema, { state: 'failed', reason: 'identity-untrusted' }))).toBe(
      'failed: its identity is not trusted',
    );
  });

  test('what containment is in force', () => {
    const at = timestampFromMs(Date.now() - 180_000);
    const records = [
      { action: 'cut-network', by: 'admin', at, reason: 'phones home' },
      { action: 'revoke', by: '', at },
    ];
    expect(
      details(box({ containment: { networkCut: true, revoked: true, records } })).filter((line) => line.startsWith('contained:')),
    ).toEqual(['contained:   network cut by admin 3m ago: phones home', 'contained:   identity revoked 3m ago']);
    expect(rows(box({ containment: {} }))).not.toHaveProperty('contained');
  });
});

test('sandbox ls marks what is contained or untrusted, and nothing else', () => {
  const state = (row: api.Sandbox): string => listColumns.find(({ title }) => title === 'STATE')?.value(row) ?? '';
  expect(state(box({ identity: { verdict: 'trusted' }, containment: {} }))).toBe('running');
  expect(state(box({ identity: { verdict: 'untrusted' } }))).toBe('running, untrusted');
  expect(state(box({ identity: { verdict: 'untrusted' }, containment: { networkCut: true } }))).toBe('running, contained, untrusted');
  expect(state(box({ session: { state: 'failed' } }))).toBe('running, session lost');
  expect(state(box({ identity: { verdict: 'revoked' }, containment: { revoked: true } }))).toBe('running, contained');
});

describe('I-30: a plan that failed is one sentence', () => {
  const over = { state: sandbox.SandboxState.FAILED, reason: 'init-failed', message: 'init failed: the step git took too long' };

  test('with its step, its exit and the end of its stderr', () => {
    const error = planFailure(box({ ...over, init: failed }), true);
    expect(error?.message).toBe(
      'the init plan of lab/web failed at step 4 of 5, post-init: exit 3: looking the database  [31mis not there',
    );
    expect(error?.hint).toMatch(/drover sandbox get lab\/web/);
    expect(planFailure(box({ ...over, init: failed }), false)?.hint).toMatch(/--rm/);
  });

  test('of which the end is told when it is long', () => {
    const { message = '' } = planFailure(box({ ...over, init: { ...failed, stderr: `begin${'x'.repeat(5_000)} end` } }), true) ?? {};
    expect(message).toMatch(/: … x+ end$/);
    expect(message.length).toBeLessThan(700);
  });

  test('with the words of the sandbox where nothing was written, and where only it tells of the failure yet', () => {
    const slow = { ...failed, step: 2, stepName: 'git', reason: 'timeout', stderr: '' };
    expect(planFailure(box({ ...over, init: slow }), true)?.message).toBe(
      'the init plan of lab/web failed at step 2 of 5, git: it took too long: the step git took too long',
    );
    expect(planFailure(box({ ...over, init: { state: 'running' } }), true)?.message).toMatch(/failed: the step git took too long$/);
  });

  test('also when it is removed because of that (--rm)', () => {
    const row = box({ state: sandbox.SandboxState.DELETING, init: { ...failed, stderr: 'no\n' } });
    expect(planFailure(row, false)?.message).toMatch(/post-init: exit 3: no$/);
    // The view of the plan goes with the sandbox.
    const gone = planFailure(box({ ...over, state: sandbox.SandboxState.DELETED }), false);
    expect(gone?.message).toBe('the init plan of lab/web failed: the step git took too long');
    expect(gone?.hint).toMatch(/--rm/);
  });

  test('and none for a command that could not be started, a plan that is run again, or any other end', () => {
    const { FAILED } = sandbox.SandboxState;
    const notFound = { ...failed, stepName: 'agent-ready', reason: 'spawn-failed' };
    expect(planFailure(box({ state: FAILED, reason: 'command-not-found', exitCode: 127, init: notFound }), true)).toBeUndefined();
    expect(planFailure(box({ init: { ...failed, reason: 'transport-error' } }), true)).toBeUndefined();
    expect(planFailure(box({ state: FAILED, reason: 'image-not-found', message: 'x' }), true)).toBeUndefined();
    expect(planFailure(box({ init: { state: 'completed' } }), true)).toBeUndefined();
  });
});

describe('I-34: an event is one line', () => {
  test.each<[string, Record<string, unknown>, string]>([
    ['SessionConnecting', { attempt: 2 }, 'attempt 2'],
    [
      'SessionConnected',
      { attempts: 1, peerCommonName: 'lab.web', thumbprint: 'ab'.repeat(32), address: '10.1.0.2:9180', bootId: 'b' },
      'lab.web at 10.1.0.2:9180, attempt 1, thumbprint abababababababab',
    ],
    [
      'SessionConnected',
      { attempts: 1, peerCommonName: '', thumbprint: '', address: 'a' },
      'a peer without a certificate at a, attempt 1, thumbprint none',
    ],
    ['SessionFailed', { attempts: 5, reason: 'fd-leak-ceiling', message: 'no' }, 'fd-leak-ceiling, after 5 attempts: no'],
    ['SessionBroken', { message: 'reset' }, 'reset'],
    ['SessionDelayed', { delayMs: 10_000, message: 'it ended the server' }, 'it ended the server'],
    ['SessionRenewed', { thumbprint: 'ab12' }, 'thumbprint ab12'],
    ['AgentRegistered', { ok: true, thumbprint: 'ab12', startCount: 2, message: '' }, 'thumbprint ab12, start 2'],
    ['AgentRegistered', { ok: false, thumbprint: 'ab12', startCount: 2, message: 'replay' }, 'refused: replay'],
    ['AgentUntrusted', { reason: 'cn-mismatch', message: 'it says lab.db', thumbprint: '' }, 'cn-mismatch: it says lab.db'],
    ['AgentTrusted', { thumbprint: 'ab12' }, 'thumbprint ab12'],
    ['IdentityEvicted', { thumbprint: 'ab12', why: 'revoked' }, 'revoked, thumbprint ab12'],
    ['IdentityRenewed', { thumbprint: 'ab12' }, 'thumbprint ab12'],
    ['ReapDegraded', { attempts: 3, message: 'disk' }, 'after 3 attempts: disk'],
    ['InitStarted', { count: 5, startCount: 1 }, '5 steps, start 1'],
    ['InitStepStarted', { step: 'git', index: 2, count: 5 }, 'step 2 of 5, git'],
    ['InitStepCompleted', { step: 'git', index: 2, count: 5, durationMs: 40, exitCode: 0 }, 'step 2 of 5, git: exit 0 after 40 ms'],
    [
      'InitStepFailed',
      { step: 'git', index: 2, count: 5, reason: 'exit-code', exitCode: 128, message: 'm', durationMs: 1 },
      'step 2 of 5, git: exit 128: m',
    ],
    [
      'InitStepFailed',
      { step: 'git', index: 2, count: 5, reason: 'timeout', message: 'm', stderr: 'slow\n\u001b]0;x\u0007', durationMs: 1 },
      'step 2 of 5, git: it took too long: slow ]0;x',
    ],
    ['InitCompleted', { count: 5, durationMs: 65_000, startCount: 1 }, '5 steps in 65s'],
    ['InitFailed', { step: '', index: 0, count: 0, reason: 'identity-untrusted', message: 'no' }, 'its identity is not trusted: no'],
    ['SandboxCreated', { project: 'lab', name: 'web', image: 'host', labels: {} }, 'lab/web, of host'],
    ['SandboxStateChanged', { project: '', name: 'web', from: 'starting', to: 'running', message: '' }, 'web: starting to running'],
    [
      'SandboxStateChanged',
      { project: '', name: 'web', from: 'running', to: 'stopped', message: 'the command ended with status 9', exitCode: 9 },
      'web: running to stopped: the command ended with status 9',
    ],
    ['SandboxDesiredChanged', { project: '', name: 'web', desired: 'deleted', generation: 2 }, 'web: deleted'],
    ['SandboxDesiredChanged', { project: '', name: 'web', networkCut: true, generation: 2 }, 'web: its network cut'],
    ['HostReady', { name: 'vm', epoch: 1, agentVersion: '0.1.0', bootId: 'b' }, 'vm, agent 0.1.0'],
    ['HostDown', { name: 'vm', reason: 'its stream ended', epoch: 1 }, 'vm: its stream ended'],
    ['IdentityRevoked', {}, ''],
    // Another version may say other things: shown as far as it goes.
    ['InitStepStarted', { step: 'git' }, 'step 0 of 0, git'],
    ['constructor', { a: 1 }, '{"a":1}'],
  ])('%s %j', (type, data, text) => {
    expect(eventText(create(api.EventSchema, { type, dataJson: JSON.stringify(data) }))).toBe(text);
  });
});
