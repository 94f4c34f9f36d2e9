import { X509Certificate } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openCertificateAuthority, validityOf } from './index.ts';

test('the dates of a certificate are read, and a date that cannot be read is none, whatever the memory held before', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-certificate-'));
  const { caPem } = await openCertificateAuthority(directory, { trustDomain: 'test.drover' });
  await rm(directory, { recursive: true });
  const certificate = new X509Certificate(caPem);
  expect(validityOf(certificate)).toEqual({ from: certificate.validFromDate, to: certificate.validToDate });

  // RFC 5280, section 4.1.2.5.1: a SEQUENCE of 30 bytes with two UTCTimes of 13 characters.
  const der = Buffer.from(certificate.raw);
  const validity = der.indexOf(Buffer.from([0x30, 30, 0x17, 13]));
  der.write('no date at al', validity + 4, 'latin1');
  der.write('no date at al', validity + 19, 'latin1');
  // Node's own dates of it differ from one time to another; the memory changes with the work in between.
  for (let i = 0; i < 2_000; i++) {
    JSON.parse(JSON.stringify({ i, work: [i, String(i)] }));
    const { from, to } = validityOf(new X509Certificate(der));
    expect([from.getTime(), to.getTime()]).toEqual([NaN, NaN]);
  }
});
