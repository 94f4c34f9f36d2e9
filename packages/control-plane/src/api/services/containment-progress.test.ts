import { newHostId } from '@drover/foundation';
import { describe, expect, it } from 'vitest';
import { newSandbox } from '../../store/new-sandbox.ts';
import { sandboxRow } from '../../store/rows.ts';
import { containmentsOf } from '../../model/containment.ts';
import type { ContainmentAction, SandboxRow } from '../../model/sandbox.ts';
import type { HostRow } from '../../model/host.ts';
import { draft } from '../../store/testing/fixtures.ts';
import { containProgress, releaseProgress } from './containment-progress.ts';

const hostId = newHostId();
const base = sandboxRow(newSandbox(draft(), 0));
const here = { name: 'alpha', connected: true } as HostRow;
const away = { name: 'alpha', connected: false } as HostRow;
const running: Partial<SandboxRow> = { hostId, observed: 'running', observedGeneration: 1 };
const stopped: Partial<SandboxRow> = { hostId, observed: 'stopped', observedGeneration: 9, desired: 'stopped' };
const by = { by: 'admin', at: 0, reason: '' };
const cut: Partial<SandboxRow> = { networkCut: true, containment: { 'cut-network': by } };
const paused: Partial<SandboxRow> = { desired: 'paused', containment: { pause: by } };
const killed: Partial<SandboxRow> = { desired: 'stopped', containment: { kill: by } };
const revoked: Partial<SandboxRow> = { revokedAt: 1, containment: { revoke: by } };

type Case = readonly [string, ContainmentAction, Partial<SandboxRow>, HostRow | undefined, boolean, boolean, RegExp];

describe('I-4: how far containment has come', () => {
  const cases: readonly Case[] = [
    ['the host has cut it', 'cut-network', { ...running, ...cut, observedNetworkCut: true }, here, true, false, /is cut/],
    ['the host has not cut it yet', 'cut-network', { ...running, ...cut }, here, false, true, /alpha has not done it/],
    ['the host is away', 'cut-network', { ...running, ...cut }, away, false, false, /alpha is not connected/],
    ['it does not run', 'cut-network', { ...stopped, ...cut }, here, true, false, /first packet/],
    ['no host has it yet', 'cut-network', cut, undefined, true, false, /first packet/],
    ['somebody undid it', 'cut-network', running, here, false, false, /undone/],
    ['it is paused', 'pause', { ...running, ...paused, observed: 'paused' }, here, true, false, /paused/],
    ['it is not paused yet', 'pause', { ...running, ...paused }, here, false, true, /not done/],
    ['the host to pause it is away', 'pause', { ...running, ...paused }, away, false, false, /not connected/],
    ['it does not run yet', 'pause', paused, undefined, true, false, /until it is released/],
    ['it ended before it was paused', 'pause', { ...stopped, ...paused }, here, false, false, /ended/],
    ['it is dead', 'kill', { ...stopped, ...killed }, here, true, false, /stopped/],
    ['it dies', 'kill', { ...running, ...killed }, here, false, true, /not done/],
    ['the host to kill it is away', 'kill', { ...running, ...killed }, away, false, false, /not connected/],
    ['it failed by itself', 'kill', { ...stopped, ...killed, observed: 'failed' }, here, true, false, /stopped/],
    ['it is removed, and not gone yet', 'kill', { ...running, desired: 'deleted' }, here, false, true, /not done/],
    ['somebody released it', 'kill', running, here, false, false, /undone/],
    [
      'its identity is revoked and the port closed',
      'revoke',
      { ...running, ...revoked, observedRegistrationClosed: true },
      here,
      true,
      false,
      /revoked/,
    ],
    ['the port is not closed yet', 'revoke', { ...running, ...revoked }, here, false, true, /not done/],
    ['the host to close the port is away', 'revoke', { ...running, ...revoked }, away, false, false, /not connected/],
    ['it is revoked and does not run', 'revoke', { ...stopped, ...revoked }, here, true, false, /revoked/],
    ['its identity was reinstated', 'revoke', running, here, false, false, /undone/],
  ];
  it.each(cases)('%s', (_what, action, columns, host, done, waits, words) => {
    expect(containProgress(action, { ...base, ...columns }, host)).toEqual({
      done,
      waits,
      message: expect.stringMatching(words) as string,
    });
  });
});

describe('I-4: how far the undoing has come', () => {
  const cases: readonly Case[] = [
    ['the host has restored it', 'cut-network', running, here, true, false, /policy/],
    ['the host has not restored it yet', 'cut-network', { ...running, observedNetworkCut: true }, here, false, true, /not done/],
    ['it does not run', 'cut-network', { ...stopped, observedNetworkCut: true }, here, true, false, /does not run/],
    ['somebody cut it again', 'cut-network', { ...running, ...cut }, here, false, false, /again/],
    ['it goes on', 'pause', running, here, true, false, /runs/],
    ['it does not go on yet', 'pause', { ...running, observed: 'paused' }, here, false, true, /not done/],
    ['the host to let it go on is away', 'pause', { ...running, observed: 'paused' }, away, false, false, /not connected/],
    ['it runs again', 'kill', running, here, true, false, /runs/],
    ['it is being started', 'kill', { ...stopped, desired: 'running', startGeneration: 10 }, here, false, true, /not done/],
    [
      'there is no room for it',
      'kill',
      { hostId, pendingReason: 'unschedulable', pendingMessage: 'no room' },
      here,
      false,
      false,
      /no room/,
    ],
    ['it could not start', 'kill', { ...running, observed: 'failed', message: 'no such file' }, here, false, false, /no such file/],
    ['somebody killed it again', 'kill', { ...stopped, ...killed }, here, false, false, /again/],
    ['its identity is reinstated', 'revoke', running, away, true, false, /register again/],
    ['the port is not open yet', 'revoke', { ...running, observedRegistrationClosed: true }, here, false, true, /not done/],
  ];
  it.each(cases)('%s', (_what, action, columns, host, done, waits, words) => {
    expect(releaseProgress(action, { ...base, ...columns }, host)).toEqual({
      done,
      waits,
      message: expect.stringMatching(words) as string,
    });
  });
});

it('I-4: what is in force is what was contained, in the order in which it is done', () => {
  expect(containmentsOf(base)).toEqual([]);
  expect(containmentsOf({ containment: { revoke: by, pause: by, kill: by, 'cut-network': by } })).toEqual([
    'cut-network',
    'pause',
    'kill',
    'revoke',
  ]);
});
