import { X509Certificate } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FakeClock, newSandboxId } from '@drover/foundation';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { bitString, integer, objectId, sequence, time } from './der.ts';
import { createKeyAndRequest, openCertificateAuthority, validityOf } from './index.ts';
import { clockSkewMs, sandboxLifetimeMs } from './limits.ts';

const hex = (der: Uint8Array): string => Buffer.from(der).toString('hex');

test.each([
  ['an empty sequence', sequence(), '3000'],
  ['a small integer', integer(2), '020102'],
  ['ecdsa-with-SHA256', objectId('1.2.840.10045.4.3.2'), '06082a8648ce3d040302'],
  ['the last year of UTCTime', time(Date.UTC(2049, 11, 31, 23, 59, 59, 999)), `170d${hex(Buffer.from('491231235959Z'))}`],
  ['the first year of GeneralizedTime', time(Date.UTC(2050, 0, 1)), `180f${hex(Buffer.from('20500101000000Z'))}`],
  ['the longest short length', bitString(new Uint8Array(126)), `037f00${'00'.repeat(126)}`],
  ['the shortest long length', bitString(new Uint8Array(127)), `03818000${'00'.repeat(127)}`],
  ['a length of two bytes', bitString(new Uint8Array(255)), `0382010000${'00'.repeat(255)}`],
])('%s', (_, der, expected) => {
  expect(hex(der)).toBe(expected);
});

test('OpenSSL reads the names and dates of every certificate as they were given', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-der-'));
  const { csrDer } = createKeyAndRequest();
  const commonNames = fc.string({ unit: fc.constantFrom('a', 'z', '0', '9', '.', '-', 'é'), minLength: 1, maxLength: 300 });
  const moments = fc.integer({ min: Date.UTC(2020, 0), max: Date.UTC(2090, 0) });
  try {
    await fc.assert(
      fc.asyncProperty(commonNames, moments, async (commonName, now) => {
        const ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test', clock: new FakeClock(now) });
        const certificate = new X509Certificate((await ca.signSandbox(newSandboxId(), commonName, csrDer)).certificatePem);
        expect(certificate.toLegacyObject().subject).toEqual({ CN: commonName });
        const second = (ms: number): number => Math.floor(ms / 1000) * 1000;
        const { from, to } = validityOf(certificate);
        expect([from.getTime(), to.getTime()]).toEqual([second(now - clockSkewMs), second(now + sandboxLifetimeMs)]);
        expect(certificate.verify(new X509Certificate(ca.caPem).publicKey)).toBe(true);
      }),
    );
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});
