import { newHostId, newSandboxId } from '@drover/foundation';
import { describe, expect, test } from 'vitest';
import { formatJoinToken, hashSecret, namesOf, newSecret, parseJoinToken } from './index.ts';

describe('SPIFFE names', () => {
  const names = namesOf('drover.test');
  const host = newHostId();
  const sandbox = newSandboxId();

  test('every name parses back', () => {
    expect(names.parse(names.controlPlane())).toEqual({ kind: 'control-plane' });
    expect(names.parse(names.host(host))).toEqual({ kind: 'host', id: host });
    expect(names.parse(names.sandbox(sandbox))).toEqual({ kind: 'sandbox', id: sandbox });
  });

  test.each([
    ['another trust domain', `spiffe://other.test/host/${host}`],
    ['a longer trust domain', `spiffe://drover.test.evil/host/${host}`],
    ['a further segment', `${names.host(host)}/x`],
    ['an id of the wrong kind', `spiffe://drover.test/host/${sandbox}`],
    ['another scheme', `https://drover.test/host/${host}`],
    ['no path', 'spiffe://drover.test'],
  ])('%s names nobody', (_, uri) => {
    expect(names.parse(uri)).toBeUndefined();
  });

  test.each(['', 'UPPER.test', 'a b', '-a', 'a/b'])('%j cannot be a trust domain', (text) => {
    expect(() => namesOf(text)).toThrowError(/trust domain/);
  });
});

describe('join tokens', () => {
  test('L-1: a token carries the fingerprint and a secret, and parses back', () => {
    const parts = { caFingerprint: 'ab'.repeat(32), secret: newSecret() };
    expect(parseJoinToken(` ${formatJoinToken(parts)}\n`)).toEqual(parts);
    expect(hashSecret(parts.secret)).toMatch(/^[0-9a-f]{64}$/);
  });

  test.each(['', 'drv1', 'drv1.00.aa', 'drv2.' + 'ab'.repeat(32) + '.' + 'a'.repeat(43)])('%j is not a token', (text) => {
    expect(() => parseJoinToken(text)).toThrowError(/not a join token/);
  });
});
