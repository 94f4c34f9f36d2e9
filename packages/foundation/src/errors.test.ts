import { describe, expect, test } from 'vitest';
import { DroverError, errorCodes, hasCode } from './index.ts';

describe('errors', () => {
  test('every code has a status and an exit code that a shell can see', () => {
    for (const [code, entry] of Object.entries(errorCodes)) {
      expect(entry.exit, code).toBeGreaterThan(0);
      expect(entry.exit, code).toBeLessThan(256);
      expect(entry.status, code).toBeGreaterThan(0);
    }
  });

  test.each([
    ['ENOSPC', 'disk-full'],
    ['EADDRINUSE', 'port-in-use'],
    ['EACCES', 'missing-privilege'],
    ['EPERM', 'missing-privilege'],
  ])('the system error %s becomes %s with a hint, its cause kept', (errno, code) => {
    const cause = Object.assign(new Error(`${errno}: it failed`), { code: errno });
    const error = DroverError.from(cause);
    expect(error).toMatchObject({ code, hint: expect.any(String), cause });
  });

  test('a DroverError passes unchanged; anything else becomes internal or the fallback', () => {
    const own = new DroverError('name-taken', 'taken');
    expect(DroverError.from(own)).toBe(own);
    expect(DroverError.from('text').code).toBe('internal');
    expect(DroverError.from(new TypeError('x'), 'runtime-failed').code).toBe('runtime-failed');
    expect(DroverError.from(AbortSignal.abort().reason).code).toBe('cancelled');
  });
});

describe('instanceof', () => {
  class Special extends DroverError {}

  test('matches the errors of another copy of this package', async () => {
    const path = './errors.ts?copy';
    const copy = (await import(path)) as { readonly DroverError: typeof DroverError };
    expect(copy.DroverError).not.toBe(DroverError);
    const foreign = new copy.DroverError('name-taken', 'taken', { hint: 'choose another' });
    expect(foreign instanceof DroverError).toBe(true);
    expect(new DroverError('internal', 'x') instanceof copy.DroverError).toBe(true);
    expect(DroverError.from(foreign)).toBe(foreign);
    expect(hasCode(foreign, 'name-taken')).toBe(true);
    expect(foreign instanceof Special).toBe(false);
  });

  test('of a subclass matches its own errors only', () => {
    expect(new Special('internal', 'x') instanceof Special).toBe(true);
    expect(new Special('internal', 'x') instanceof DroverError).toBe(true);
    expect(new DroverError('internal', 'x') instanceof Special).toBe(false);
    for (const other of [new Error('x'), undefined, null, 'x', { code: 'internal', message: 'x' }])
      expect(other instanceof DroverError).toBe(false);
  });
});
