import { create } from '@bufbuild/protobuf';
import { parseName, parseProject } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { restartHint } from './containment.ts';
import { endReason, type EndColumns } from './end.ts';
import { stopCauses } from './sandbox.ts';

const row = (change: Partial<EndColumns>): EndColumns => ({
  reason: 'stopped',
  message: '',
  hint: '',
  stopCause: undefined,
  stopBy: '',
  containment: {},
  spec: create(sandbox.SandboxSpecSchema, { ttlSeconds: 1_800n }),
  ...change,
});
const kill = { by: 'eve', at: 0, reason: 'phones home' };

describe('why a sandbox ended', () => {
  it.each<[string, Partial<EndColumns>, string, string]>([
    ['a stop by a caller', { stopCause: 'asked', stopBy: 'admin' }, 'stopped', 'stopped by admin'],
    ['a stop without a recorded cause', {}, 'stopped', 'stopped'],
    ['its time to live', { stopCause: 'ttl' }, 'ttl', 'stopped at the end of its time to live (30m)'],
    ['a drain', { stopCause: 'drain' }, 'drained', 'stopped by a drain of its host, as no other host has room for it'],
    ['a containment', { stopCause: 'contained', stopBy: 'eve' }, 'contained', 'killed by eve to contain it'],
    [
      'a containment with a reason',
      { stopCause: 'contained', stopBy: 'eve', containment: { kill } },
      'contained',
      'killed by eve to contain it: phones home',
    ],
    ['a removal', { stopCause: 'removed', stopBy: 'admin' }, 'removed', 'removed by admin'],
    ['a removal while it ran', { reason: '', stopCause: 'removed', stopBy: 'admin' }, 'removed', 'removed by admin'],
    [
      'a stop before it ran',
      { reason: 'never-started', stopCause: 'asked', stopBy: 'admin' },
      'never-started',
      'stopped by admin, before it ran',
    ],
  ])('%s', (_, change, reason, message) => {
    expect(endReason(row(change))).toEqual({ reason, message, hint: '' });
  });

  it.each([
    [{}, 'drover sandbox start lab/web'],
    [{ 'cut-network': kill }, 'drover sandbox start lab/web'],
    [{ pause: kill }, 'drover sandbox release lab/web'],
    [{ kill }, 'drover sandbox release lab/web'],
  ])('the hint for an ended sandbox with the containment %j is %s', (containment, command) => {
    expect(restartHint({ project: parseProject('lab'), name: parseName('web'), containment })).toContain(`\`${command}\``);
  });

  it('is the reported reason, whatever was requested meanwhile', () => {
    const reported = fc.constantFrom(
      'exited',
      'idle',
      'out-of-memory',
      'host-restarted',
      'killed',
      'start-failed',
      'init-failed',
      'copy-lost',
    );
    fc.assert(
      fc.property(reported, fc.string(), fc.constantFrom(undefined, ...stopCauses), (reason, message, stopCause) => {
        const reported = { reason, message, hint: 'do this' };
        expect(endReason(row({ ...reported, stopCause, stopBy: 'admin' }))).toEqual(reported);
      }),
    );
  });
});
