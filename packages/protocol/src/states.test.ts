import { describe, expect, test } from 'vitest';
import { api, desiredStates, hostStates, sandbox, sandboxStates } from './index.ts';

describe('L-25: the names of states', () => {
  test.each([
    ['sandboxes', sandboxStates, sandbox.SandboxState],
    ['desired states of sandboxes', desiredStates, sandbox.DesiredState],
    ['hosts', hostStates, api.HostState],
  ])('of %s: every wire value except UNSPECIFIED has a name that maps back to it', (_, words, wire) => {
    const values: readonly number[] = Object.values(wire).filter((value) => value !== 0);
    expect(values.map((value) => words.name(value))).toEqual([...words.names]);
    expect(words.name(0)).toBeUndefined();
    expect(words.name(999)).toBeUndefined();
  });
});
