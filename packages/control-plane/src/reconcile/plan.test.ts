import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { create } from '@bufbuild/protobuf';
import { sandbox } from '@drover/protocol';
import { newSandboxId, type SandboxId } from '@drover/foundation';
import { runIsOver } from '../model/state.ts';
import type { DesiredState, ObservedState, SandboxRow } from '../model/sandbox.ts';
import { observedState } from '../store/rows.ts';
import { draft } from '../store/testing/fixtures.ts';
import type { Observation } from '../hub/hub.ts';
import { planHost, planNetwork, planSandbox } from './plan.ts';
import type { Step } from './step.ts';

type StateName = keyof typeof sandbox.SandboxState;

function row(change: Partial<SandboxRow> = {}): SandboxRow {
  const { id, project, name, spec, labels, request } = draft();
  return {
    id,
    project,
    name,
    spec,
    labels,
    request,
    desired: 'running',
    generation: 1,
    startGeneration: 1,
    placedGeneration: 1,
    hostId: undefined,
    pendingReason: '',
    pendingMessage: '',
    observed: undefined,
    observedGeneration: 0,
    observedSequence: 0,
    reason: '',
    message: '',
    hint: '',
    exitCode: undefined,
    exitSignal: '',
    stopCause: undefined,
    stopBy: '',
    outOfMemory: false,
    address: '',
    runtime: '',
    imageDigest: '',
    startCount: 0,
    lostSince: undefined,
    createdAt: 0,
    updatedAt: 0,
    startedAt: undefined,
    finishedAt: undefined,
    deletedAt: undefined,
    stopGraceMs: 0,
    networkCut: false,
    observedNetworkCut: false,
    revokedAt: undefined,
    observedRegistrationClosed: false,
    containment: {},
    ...change,
  };
}

function copy(state: StateName, generation = 1, id: SandboxId = newSandboxId()): Observation {
  const fields = { sandboxId: id, generation: BigInt(generation), state: sandbox.SandboxState[state] };
  return create(sandbox.SandboxObservationSchema, fields) as Observation;
}

describe('planning one sandbox', () => {
  const ended = { observed: 'stopped', observedGeneration: 1 } as const;
  const by = { by: 'admin', at: 0, reason: '' };
  const cases: readonly [string, Partial<SandboxRow>, [StateName, number] | undefined, Step['kind'] | undefined][] = [
    ['L-22: placed and not created yet', {}, undefined, 'create'],
    ['preparing, and its host holds no copy', { observed: 'preparing', observedGeneration: 1 }, undefined, 'create'],
    ['ran, and its host holds no copy', { observed: 'running', observedGeneration: 1 }, undefined, 'absent'],
    ['ended, and its host holds no copy', ended, undefined, 'absent'],
    [
      'its creation failed, and a new start is requested',
      { observed: 'failed', observedGeneration: 1, generation: 2, startGeneration: 2 },
      undefined,
      'create',
    ],
    ['runs as desired', {}, ['RUNNING', 1], undefined],
    ['is being created, or to be retried', { observed: 'preparing', observedGeneration: 1 }, ['PREPARING', 1], 'create'],
    ['given up by the control plane, and to be retried', { observed: 'failed', observedGeneration: 1 }, ['PREPARING', 1], 'stop'],
    ['preparing as the host last reported, and ended since', ended, ['PREPARING', 1], undefined],
    ['is starting', {}, ['STARTING', 1], undefined],
    ['its run has ended', ended, ['STOPPED', 1], undefined],
    ['its run has ended, and the store does not know yet', {}, ['STOPPED', 1], undefined],
    ['its run has ended, after a pause and a resume', { generation: 3 }, ['STOPPED', 1], undefined],
    ['a start is requested after its run', { ...ended, generation: 2, startGeneration: 2 }, ['STOPPED', 1], 'start'],
    [
      'waits for room to start again',
      { ...ended, generation: 2, startGeneration: 2, pendingReason: 'unschedulable' },
      ['STOPPED', 1],
      undefined,
    ],
    ['paused, desired running', { generation: 3 }, ['PAUSED', 2], 'resume'],
    ['running, desired paused', { desired: 'paused', generation: 2 }, ['RUNNING', 1], 'pause'],
    ['starting, desired paused', { desired: 'paused', generation: 2 }, ['STARTING', 1], undefined],
    ['ended, desired paused', { desired: 'paused', generation: 2 }, ['STOPPED', 1], undefined],
    ['never created, desired paused', { desired: 'paused', generation: 2 }, undefined, 'create'],
    ['running, desired stopped', { desired: 'stopped', generation: 2 }, ['RUNNING', 1], 'stop'],
    ['being created, desired stopped', { desired: 'stopped', generation: 2 }, ['PREPARING', 1], 'stop'],
    ['never created, desired stopped', { desired: 'stopped', generation: 2 }, undefined, 'absent'],
    ['stopped as desired', { desired: 'stopped', generation: 2 }, ['STOPPED', 2], undefined],
    ['desired deleted', { desired: 'deleted', generation: 2 }, ['PREPARING', 1], 'destroy'],
    ['desired deleted, and its host holds no copy', { desired: 'deleted', generation: 2 }, undefined, 'absent'],
    ['L-26: a copy from an earlier placement', { generation: 3, startGeneration: 3, placedGeneration: 3 }, ['RUNNING', 1], 'fence'],
    ['given up by the control plane, and running', { observed: 'failed', observedGeneration: 1 }, ['RUNNING', 1], 'stop'],
    ['I-4: contained by a pause before its creation', { desired: 'paused', containment: { pause: by } }, undefined, undefined],
    ['I-4: contained by a pause while it is prepared', { desired: 'paused', containment: { pause: by } }, ['PREPARING', 1], undefined],
    [
      'I-4: contained by a pause, and to be started again',
      { ...ended, desired: 'paused', generation: 2, startGeneration: 2, containment: { pause: by } },
      ['STOPPED', 1],
      undefined,
    ],
  ];
  it.each(cases)('%s', (_, change, seen, expected) => {
    const target = row(change);
    expect(planSandbox(target, seen === undefined ? undefined : copy(...seen, target.id))?.kind).toBe(expected);
  });

  const cuts: readonly [string, Partial<SandboxRow>, StateName, boolean, Step['kind'] | undefined, Step['kind'] | undefined][] = [
    ['contained, and running', { networkCut: true }, 'RUNNING', false, 'cut', undefined],
    ['contained, and paused', { networkCut: true, desired: 'paused' }, 'PAUSED', false, 'cut', undefined],
    ['contained, and to be paused as well', { networkCut: true, desired: 'paused' }, 'RUNNING', false, 'cut', 'pause'],
    ['contained as desired, and to be paused', { networkCut: true, desired: 'paused' }, 'RUNNING', true, undefined, 'pause'],
    ['contained as desired', { networkCut: true }, 'RUNNING', true, undefined, undefined],
    ['released', {}, 'RUNNING', true, 'cut', undefined],
    ['contained while it is being created', { networkCut: true }, 'PREPARING', false, 'cut', 'create'],
    ['contained while it starts', { networkCut: true }, 'STARTING', false, 'cut', undefined],
    ['contained, and ended', { networkCut: true, ...ended }, 'STOPPED', false, undefined, undefined],
    ['contained, and to be stopped', { networkCut: true, desired: 'stopped' }, 'RUNNING', false, 'cut', 'stop'],
    ['contained while it is being stopped', { networkCut: true, desired: 'stopped' }, 'STOPPING', false, 'cut', 'stop'],
    ['contained, and given up', { networkCut: true, observed: 'failed', observedGeneration: 1 }, 'RUNNING', false, 'cut', 'stop'],
    ['contained, and to be deleted', { networkCut: true, desired: 'deleted' }, 'RUNNING', false, undefined, 'destroy'],
    ['contained, and a copy of an earlier placement', { networkCut: true, placedGeneration: 2 }, 'RUNNING', false, undefined, 'fence'],
  ];
  it.each(cuts)('I-4: the network step and the other step: %s', (_, change, state, networkCut, network, rest) => {
    const target = row(change);
    const held = { ...copy(state, 1, target.id), networkCut };
    expect([planNetwork(target, held)?.kind, planSandbox(target, held)?.kind]).toEqual([network, rest]);
    expect(planHost([target], [held]).map(({ kind }) => kind)).toEqual([network, rest].filter((kind) => kind !== undefined));
  });

  it.each([
    [1, false, 'cut'],
    [1, true, undefined],
    [undefined, true, 'cut'],
    [undefined, false, undefined],
  ])('I-4: the registration port is closed to a revoked sandbox: revoked at %j, closed %j', (revokedAt, registrationClosed, step) => {
    const target = row({ revokedAt });
    expect(planNetwork(target, { ...copy('RUNNING', 1, target.id), registrationClosed })?.kind).toBe(step);
  });

  it('L-22: a failed restart is retried as a start, not as a creation', () => {
    const target = row({ generation: 2, startGeneration: 2, observed: 'preparing', observedGeneration: 2 });
    expect(planSandbox(target, { ...copy('PREPARING', 2, target.id), startCount: 1n })?.kind).toBe('start');
  });

  it('L-26: a copy of a sandbox that is not placed here is fenced', () => {
    const stale = copy('RUNNING', 4);
    expect(planHost([], [stale])).toEqual([{ kind: 'fence', id: stale.sandboxId, generation: 4, placedHere: false }]);
  });
});

/** A minimal model of a host and its rows: the intended effect of each step. */
class Model {
  readonly rows = new Map<string, SandboxRow>();
  readonly copies = new Map<string, Observation>();

  steps(): readonly Step[] {
    return planHost([...this.rows.values()], [...this.copies.values()]);
  }

  apply(step: Step): void {
    if (step.kind === 'fence') {
      this.copies.delete(step.id);
      return;
    }
    const { id, generation } = step.row;
    switch (step.kind) {
      case 'destroy':
      case 'absent':
        this.copies.delete(id);
        this.rows.delete(id);
        return;
      case 'create':
      case 'start':
        return this.#see({ ...copy('RUNNING', generation, id), networkCut: step.row.networkCut });
      case 'resume':
        return this.#see({ ...copy('RUNNING', generation, id), networkCut: this.#copy(id).networkCut });
      case 'pause':
        return this.#see({ ...copy('PAUSED', generation, id), networkCut: this.#copy(id).networkCut });
      case 'stop':
        return this.#see({ ...copy('STOPPED', generation, id), networkCut: this.#copy(id).networkCut });
      case 'cut':
        return this.#see({ ...this.#copy(id), networkCut: step.row.networkCut });
    }
  }

  #copy(id: string): Observation {
    const held = this.copies.get(id);
    if (held === undefined) throw new Error(`no copy of ${id}`);
    return held;
  }

  #see(seen: Observation): void {
    this.copies.set(seen.sandboxId, seen);
    const known = this.rows.get(seen.sandboxId);
    if (known === undefined) return;
    // Like the store: a start that was given up stays failed.
    const givenUp = known.observed === 'failed' && runIsOver(known);
    if (!givenUp) this.rows.set(known.id, { ...known, observed: observedState(seen.state), observedGeneration: Number(seen.generation) });
  }
}

describe('planning a host, for any desired and observed state', () => {
  const desired = fc.constantFrom<DesiredState>('running', 'stopped', 'paused', 'deleted');
  const observed = fc.constantFrom<ObservedState | undefined>(
    undefined,
    'preparing',
    'starting',
    'running',
    'paused',
    'stopping',
    'stopped',
    'failed',
  );
  const copyState = fc.constantFrom<StateName>('PREPARING', 'STARTING', 'RUNNING', 'PAUSED', 'STOPPING', 'STOPPED', 'FAILED');
  const entry = fc
    .record({
      placed: fc.boolean(),
      desired,
      observed,
      state: fc.option(copyState, { nil: undefined }),
      generations: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 5, maxLength: 5 }),
      waits: fc.boolean(),
      cut: fc.boolean(),
      isCut: fc.boolean(),
    })
    .map(({ placed, desired: desiredState, observed: observedBefore, state, generations, waits, cut, isCut }) => {
      const [a = 1, b = 1, c = 1, d = 1, e = 1] = generations;
      const [placedGeneration = 1, startGeneration = 1, generation = 1] = [a, b, c].sort((x, y) => x - y);
      const placedRow = row({
        desired: desiredState,
        observed: observedBefore,
        observedGeneration: d,
        generation,
        startGeneration,
        placedGeneration,
        pendingReason: waits ? 'unschedulable' : '',
        networkCut: cut,
      });
      const seen = state === undefined ? undefined : { ...copy(state, e, placedRow.id), networkCut: isCut };
      return { row: placed ? placedRow : undefined, copy: seen };
    });
  const model = fc.array(entry, { maxLength: 8 }).map((entries) => {
    const made = new Model();
    for (const { row: target, copy: seen } of entries) {
      if (target !== undefined) made.rows.set(target.id, target);
      if (seen !== undefined) made.copies.set(seen.sandboxId, seen);
    }
    return made;
  });

  it('plans at most one step per sandbox, beside its network, and is deterministic', () => {
    fc.assert(
      fc.property(model, (host) => {
        const steps = host.steps();
        const ids = steps.map((step) => (step.kind === 'fence' ? step.id : step.row.id + (step.kind === 'cut' ? ' network' : '')));
        expect(new Set(ids).size).toBe(ids.length);
        expect(host.steps()).toEqual(steps);
      }),
    );
  });

  it('L-22: converges within a few rounds, and leaves only desired copies on the host', () => {
    fc.assert(
      fc.property(model, (host) => {
        for (let round = 0; round < 5; round++) for (const step of host.steps()) host.apply(step);
        expect(host.steps()).toEqual([]);
        for (const [id, seen] of host.copies) {
          const target = host.rows.get(id);
          expect(target).toBeDefined();
          expect(target?.desired).not.toBe('deleted');
          expect(Number(seen.generation)).toBeGreaterThanOrEqual(target?.placedGeneration ?? Number.POSITIVE_INFINITY);
          const { RUNNING, PAUSED } = sandbox.SandboxState;
          if (seen.state === RUNNING || seen.state === PAUSED) expect(seen.networkCut).toBe(target?.networkCut);
          if (target?.desired === 'stopped') expect([sandbox.SandboxState.STOPPED, sandbox.SandboxState.FAILED]).toContain(seen.state);
        }
      }),
    );
  });

  it('never restarts a run that ended after the newest start request', () => {
    fc.assert(
      fc.property(entry, ({ row: target, copy: seen }) => {
        if (target === undefined || seen === undefined || Number(seen.generation) < target.startGeneration) return;
        if (seen.state !== sandbox.SandboxState.STOPPED) return;
        expect(['start', 'create', 'resume']).not.toContain(planSandbox(target, seen)?.kind);
      }),
    );
  });
});
