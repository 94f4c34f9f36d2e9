import { describe, expect, it } from 'vitest';
import { create } from '@bufbuild/protobuf';
import type { HostId } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { hostState } from './host.ts';
import { sandboxState, type StateColumns } from './state.ts';

const host = 'h-0000000000000000' as HostId;
const fresh: StateColumns = {
  desired: 'running',
  startGeneration: 1,
  hostId: undefined,
  pendingReason: '',
  pendingMessage: '',
  observed: undefined,
  observedGeneration: 0,
  reason: 'r',
  message: 'm',
  hint: 'h',
  lostSince: undefined,
  deletedAt: undefined,
  stopCause: undefined,
  stopBy: '',
  containment: {},
  spec: create(sandbox.SandboxSpecSchema),
};

describe('L-25: the displayed state of a sandbox', () => {
  const on = { hostId: host } as const;
  const ran = { ...on, observed: 'running', observedGeneration: 1 } as const;
  const ended = { ...on, observed: 'stopped', observedGeneration: 1 } as const;
  const cases: readonly [string, Partial<StateColumns>, string, string][] = [
    ['created', {}, 'pending', 'placing'],
    ['no host has room', { pendingReason: 'unschedulable', pendingMessage: 'full' }, 'pending', 'unschedulable'],
    ['placed', on, 'scheduled', 'scheduled'],
    ['its image is being pulled', { ...ran, observed: 'preparing' }, 'preparing', 'r'],
    ['its init starts', { ...ran, observed: 'starting' }, 'starting', 'r'],
    ['runs', ran, 'running', 'r'],
    ['paused', { ...ran, desired: 'paused', observed: 'paused' }, 'paused', 'r'],
    ['stop requested', { ...ran, desired: 'stopped' }, 'stopping', 'r'],
    ['stopped', { ...ended, desired: 'stopped' }, 'stopped', 'r'],
    ['its run ended', ended, 'stopped', 'r'],
    ['failed', { ...ended, observed: 'failed' }, 'failed', 'r'],
    ['failed, without a host', { ...ended, hostId: undefined, observed: 'failed' }, 'failed', 'r'],
    ['start requested again', { ...ended, startGeneration: 2 }, 'scheduled', 'scheduled'],
    [
      'start requested again, but its host has no room',
      { ...ended, startGeneration: 2, pendingReason: 'unschedulable' },
      'pending',
      'unschedulable',
    ],
    ['start requested again, then stop', { ...ended, startGeneration: 2, desired: 'stopped' }, 'stopped', 'r'],
    ['its host is down', { ...ran, lostSince: 5 }, 'lost', 'host-down'],
    ['its host is down, and it is to be deleted', { ...ran, lostSince: 5, desired: 'deleted' }, 'deleting', 'r'],
    ['deletion requested', { ...ran, desired: 'deleted' }, 'deleting', 'r'],
    ['deleted', { ...ended, desired: 'deleted', deletedAt: 9 }, 'deleted', 'r'],
  ];
  it.each(cases)('%s', (_, change, state, reason) => {
    expect(sandboxState({ ...fresh, ...change })).toMatchObject({ state, reason });
  });
});

describe('L-25: the displayed state of a host', () => {
  const ready = { removedAt: undefined, epoch: 1, connected: true, scheduling: 'open' } as const;
  it.each([
    ['joined, never connected', { ...ready, epoch: 0, connected: false }, 'joining'],
    ['connected', ready, 'ready'],
    ['cordoned', { ...ready, scheduling: 'cordoned' }, 'cordoned'],
    ['draining', { ...ready, scheduling: 'draining' }, 'draining'],
    ['cordoned and down', { ...ready, scheduling: 'cordoned', connected: false }, 'down'],
    ['removed', { ...ready, removedAt: 4 }, 'removed'],
  ] as const)('%s', (_, row, state) => {
    expect(hostState(row)).toBe(state);
  });
});
