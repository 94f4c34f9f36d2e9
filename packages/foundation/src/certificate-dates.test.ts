import { expect, test } from 'vitest';
import { certificateDatesError } from './certificate-dates.ts';

const dates = { validFromDate: new Date('2026-01-01T00:00:00Z'), validToDate: new Date('2026-12-31T00:00:00Z') };

test.each([
  ['2025-06-01T00:00:00.000Z', 'is valid from 2026-01-01T00:00:00.000Z, and the clock of this machine says 2025-06-01T00:00:00.000Z'],
  ['2027-06-01T00:00:00.000Z', 'was valid until 2026-12-31T00:00:00.000Z, and the clock of this machine says 2027-06-01T00:00:00.000Z'],
])('at %s a certificate %s', (now, sentence) => {
  expect(certificateDatesError('a:7443', [dates], new Date(now))?.message).toBe(`the certificate of a:7443 ${sentence}`);
});

test('a chain whose dates include the time has no error', () => {
  expect(certificateDatesError('a:7443', [dates, dates], new Date('2026-06-01T00:00:00Z'))).toBeUndefined();
});
