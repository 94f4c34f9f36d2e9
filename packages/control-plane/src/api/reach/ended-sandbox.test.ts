import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { draft } from '../../store/testing/fixtures.ts';
import { TestStores } from '../../store/testing/stores.ts';
import { endedError } from './ended-sandbox.ts';

describe('what a caller is told of a sandbox that failed', () => {
  const stores = new TestStores('sqlite');
  beforeAll(() => stores.start());
  afterAll(() => stores.stop());

  it('R-2: one that removes itself (--rm) says no less', async () => {
    const store = await stores.open();
    const { id, name } = await store.sandboxes.create(draft({ spec: { removeOnExit: true } }));
    await store.sandboxes.fail(id, { reason: 'image-not-found', message: 'there is none', hint: 'name another' });
    const row = await store.sandboxes.get(id);
    expect(row).toMatchObject({ desired: 'deleted' });
    expect(row === undefined ? undefined : endedError(row)).toMatchObject({
      code: 'image-not-found',
      message: `sandbox ${name} failed: there is none`,
      hint: 'name another',
    });
    expect(row === undefined ? '' : endedError(row, 'alpha').message).toBe(`sandbox ${name} failed on host alpha: there is none`);
    await store.close();
  });

  it.each([
    // Nobody is to call again for a sandbox that was given up.
    ['unavailable', 'sandbox-not-running'],
    ['host-unavailable', 'sandbox-not-running'],
    ['image-not-found', 'image-not-found'],
    ['registry-unreachable', 'registry-unreachable'],
    ['out-of-memory', 'sandbox-not-running'],
  ] as const)('L-22: %s is %s', async (reason, code) => {
    const store = await stores.open();
    const { id, name } = await store.sandboxes.create(draft());
    await store.sandboxes.fail(id, { reason, message: 'it stood in the way', hint: 'take it away' });
    const row = await store.sandboxes.get(id);
    expect(row === undefined ? undefined : endedError(row)).toMatchObject({
      code,
      message: `sandbox ${name} failed: it stood in the way`,
      hint: 'take it away',
    });
    await store.close();
  });

  it.each([
    [127, 'command-not-found', 'check the command'],
    [126, 'command-not-executable', 'check the command'],
    // Its user or its directory, for one.
    [125, 'sandbox-not-running', 'drover sandbox get'],
  ] as const)('R-2: a command that could not be started is no command that ended with %i', async (exitCode, code, hint) => {
    const store = await stores.open();
    const { id } = await store.sandboxes.create(draft());
    await store.sandboxes.fail(id, { reason: 'start-failed', message: 'nope: it cannot be started', hint: '' });
    const row = await store.sandboxes.get(id);
    expect(row === undefined ? undefined : endedError({ ...row, exitCode })).toMatchObject({
      code,
      message: expect.stringContaining('nope: it cannot be started') as string,
      hint: expect.stringContaining(hint) as string,
    });
    await store.close();
  });
});
