import { describe, expect, test } from 'vitest';
import { api, desiredStates, hostStates, sandbox, sandboxStates } from './index.ts';

describe('L-25: the names of states', () => {
  test.each([
    ['sandboxes', sandboxStates, sandbox.SandboxState],
    ['what is wanted of sandboxes', desiredStates, sandbox.DesiredState],
    ['hosts', hostStates, api.HostState],
  ])('of %s: every value of the wire has one, but for UNSPECIFIED, and it leads back', (_, words, wire) => {
    const values: readonly number[] = Object.values(wire).filter((value) => value !== 0);
    expect(values.map((value) => words.name(value))).toEqual([...words.names]);
    expect(words.name(0)).toBeUndefined();
    expect(words.name(999)).toBeUndefined();
  });
});
