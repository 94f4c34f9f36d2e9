import { create } from '@bufbuild/protobuf';
import { sandbox } from '@drover/protocol';
import { describe, expect, it } from 'vitest';
import type { SandboxState } from '../backends/index.ts';
import { endOf } from './ending.ts';
import { receiveSpec } from './received-spec.ts';

const spec = receiveSpec(create(sandbox.SandboxSpecSchema, { image: 'host', idleStopSeconds: 60n }));
const state = (change: Partial<SandboxState> = {}): SandboxState => ({
  phase: 'ended',
  pid: undefined,
  exitCode: 3,
  exitSignal: '',
  outOfMemory: false,
  startedAt: 1,
  finishedAt: 2,
  ...change,
});
const unrecorded = state({ exitCode: 137, unrecorded: true });

describe('how a run that ended is reported', () => {
  it.each<[string, SandboxState | undefined, Parameters<typeof endOf>[2], object]>([
    ['its own exit', state(), 'exited', { phase: 'stopped', reason: 'exited', exitCode: 3 }],
    ['its own exit before the host restarted', state(), 'host-restarted', { phase: 'stopped', reason: 'exited', exitCode: 3 }],
    ['a stop on request', state(), 'stopped', { phase: 'stopped', reason: 'stopped', exitCode: 3, message: '' }],
    ['a stop on request that had to kill it', unrecorded, 'stopped', { phase: 'stopped', reason: 'stopped', exitCode: 137 }],
    ['idleness', state({ idle: true }), 'exited', { phase: 'stopped', reason: 'idle' }],
    ['memory', state({ outOfMemory: true }), 'exited', { phase: 'failed', reason: 'out-of-memory' }],
    ['a kill from outside', unrecorded, 'exited', { phase: 'stopped', reason: 'killed', exitCode: 137 }],
    ['a restart of its host', unrecorded, 'host-restarted', { phase: 'failed', reason: 'host-restarted', exitCode: undefined }],
    ['a restart that left nothing of it', undefined, 'host-restarted', { phase: 'failed', reason: 'host-restarted', exitCode: undefined }],
  ])('%s', (_, seen, why, end) => {
    expect(endOf(spec, seen, why)).toMatchObject(end);
  });
});
