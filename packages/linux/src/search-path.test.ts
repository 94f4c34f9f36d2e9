import { expect, test } from 'vitest';
import { searchPath } from './search-path.ts';

test('the directories of administrators come last, and once', () => {
  expect(searchPath('/usr/bin:/bin')).toBe('/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin');
  expect(searchPath('/sbin:/bin')).toBe('/sbin:/bin:/usr/local/sbin:/usr/sbin');
});
