import type { Name, Project } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { describe, expect, it } from 'vitest';
import type { SandboxRow } from '../../model/sandbox.ts';
import { overtaken } from './wait.ts';

const { RUNNING, PAUSED, STOPPED, FAILED, DELETING, DELETED } = sandbox.SandboxState;
const ended = [STOPPED, FAILED, DELETING, DELETED];

/** A caller's change had generation 5; what was asked for since has a later one. */
const row = (desired: SandboxRow['desired'], generation = 6, startGeneration = 1) => ({
  project: 'lab' as Project,
  name: 'web' as Name,
  desired,
  generation,
  startGeneration,
});

describe('a wait that another request overtakes', () => {
  it.each<[string, ReturnType<typeof row>, readonly sandbox.SandboxState[], string | undefined]>([
    ['stop, then start', row('running', 6, 6), ended, 'started again'],
    ['stop, then start, then stop', row('stopped', 7, 6), ended, 'started again'],
    ['wait for the end, then a stop', row('stopped'), [STOPPED, FAILED, DELETED], undefined],
    ['wait for the end, then a pause', row('paused'), [STOPPED, FAILED, DELETED], undefined],
    ['stop, then rm', row('deleted'), ended, undefined],
    ['start, then stop', row('stopped'), [RUNNING], 'stopped'],
    ['start, then pause', row('paused'), [RUNNING], 'paused'],
    ['start, then rm', row('deleted'), [RUNNING], 'removed'],
    ['start, then another start', row('running', 6, 6), [RUNNING], undefined],
    ['pause, then resume', row('running'), [PAUSED], 'resumed'],
    ['pause, then stop', row('stopped'), [PAUSED], 'stopped'],
    ['either of two, then one of them', row('paused'), [RUNNING, PAUSED], undefined],
    ['wait for the end, then rm', row('deleted'), [STOPPED], 'removed'],
    ['nothing since', row('paused', 5), [RUNNING], undefined],
  ])('%s', (_, now, states, happened) => {
    const error = overtaken(now, new Set(states), 5);
    expect(error?.message).toBe(happened === undefined ? undefined : `sandbox lab/web was ${happened} while this command waited for it`);
  });
});
