import { execFile } from 'node:child_process';
import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { mkdtemp, rm, stat, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { newHostId, newSandboxId } from '@drover/foundation';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { clientAuth, createKeyAndRequest, hasKeyUsage, openCertificateAuthority, serverAuth, subjectOf, thumbprintOf } from './index.ts';

const run = promisify(execFile);
let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-pki-'));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

describe('the certificate authority', () => {
  test('opened twice it is the same one, and its key is readable by its owner alone', async () => {
    const first = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    const second = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    expect(second.fingerprint).toBe(first.fingerprint);
    expect((await stat(join(directory, 'ca-key.pem'))).mode & 0o777).toBe(0o600);
  });

  test('I-28: a missing or unreadable key is refused with what to do', async () => {
    await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    await writeFile(join(directory, 'ca-key.pem'), 'nonsense');
    await expect(openCertificateAuthority(directory, { trustDomain: 'drover.test' })).rejects.toMatchObject({ code: 'invalid-config' });
    await unlink(join(directory, 'ca-key.pem'));
    await expect(openCertificateAuthority(directory, { trustDomain: 'drover.test' })).rejects.toMatchObject({ code: 'invalid-config' });
  });

  test('another trust domain is refused', async () => {
    await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    await expect(openCertificateAuthority(directory, { trustDomain: 'other.test' })).rejects.toMatchObject({ code: 'invalid-config' });
  });

  test('L-2, I-5: host and sandbox certificates carry the names that the CA gave, and openssl accepts the chain', async () => {
    const ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    const hostId = newHostId();
    const sandboxId = newSandboxId();
    const { csrDer } = createKeyAndRequest();
    const host = await ca.signHost(hostId, csrDer);
    const sandbox = await ca.signSandbox(sandboxId, 'web.alpha', csrDer);
    const hostCertificate = new X509Certificate(host.certificatePem);
    const sandboxCertificate = new X509Certificate(sandbox.certificatePem);
    expect(subjectOf(hostCertificate, ca.names)).toEqual({ kind: 'host', id: hostId });
    expect(subjectOf(sandboxCertificate, ca.names)).toEqual({ kind: 'sandbox', id: sandboxId });
    expect(sandboxCertificate.subject).toBe('CN=web.alpha');
    expect([hasKeyUsage(hostCertificate, clientAuth), hasKeyUsage(hostCertificate, serverAuth)]).toEqual([true, false]);
    expect(host.thumbprint).toBe(thumbprintOf(hostCertificate.raw));
    await writeFile(join(directory, 'leaf.pem'), sandbox.certificatePem);
    const verified = await run('openssl', ['verify', '-x509_strict', '-CAfile', join(directory, 'ca.pem'), join(directory, 'leaf.pem')]);
    expect(verified.stdout).toContain('OK');
  });

  test('I-6: every start has a key of its own', () => {
    expect(new Set(Array.from({ length: 40 }, () => createKeyAndRequest().keyPem)).size).toBe(40);
  });

  test('I-6: a renewed certificate is for the same key and names, and another one', async () => {
    const ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    const id = newSandboxId();
    const first = await ca.signSandbox(id, 'web.alpha', createKeyAndRequest().csrDer);
    const old = new X509Certificate(first.certificatePem);
    const second = await ca.renewSandbox(id, 'web.alpha', old.publicKey.export({ type: 'spki', format: 'der' }));
    const renewed = new X509Certificate(second.certificatePem);
    expect(renewed.publicKey.equals(old.publicKey)).toBe(true);
    expect(second.thumbprint).not.toBe(first.thumbprint);
    expect([renewed.subject, renewed.subjectAltName, renewed.keyUsage]).toEqual([old.subject, old.subjectAltName, old.keyUsage]);
    expect(renewed.verify(new X509Certificate(ca.caPem).publicKey)).toBe(true);
  });

  test.each([
    ['nonsense', () => new Uint8Array([1, 2, 3])],
    ['on another curve', () => generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey.export({ type: 'spki', format: 'der' })],
    ['too large', () => new Uint8Array(100_000)],
  ])('I-6: a public key that is %s is refused as invalid', async (_, key) => {
    const ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    await expect(ca.renewSandbox(newSandboxId(), 'web.alpha', key())).rejects.toMatchObject({ code: 'invalid-argument' });
  });

  test("the control plane's chain carries the CA whose fingerprint join tokens name (L-1)", async () => {
    const ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    const issued = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
    const chain = issued.certificatePem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
    expect(chain).toHaveLength(2);
    expect(thumbprintOf(chain[1] ?? '')).toBe(ca.fingerprint);
    expect(new X509Certificate(chain[0] ?? '').subjectAltName).toBe(
      'URI:spiffe://drover.test/control-plane, DNS:localhost, IP Address:127.0.0.1',
    );
  });

  test.each([
    ['empty', (der: Uint8Array) => der.slice(0, 0)],
    ['cut off', (der: Uint8Array) => der.slice(0, der.length - 7)],
    ['signed by another key', (der: Uint8Array) => Uint8Array.from(der, (byte, i) => (i === der.length - 2 ? byte ^ 1 : byte))],
    ['too large', () => new Uint8Array(100_000)],
  ])('a request that is %s is refused as invalid', async (_, spoil) => {
    const ca = await openCertificateAuthority(directory, { trustDomain: 'drover.test' });
    const { csrDer } = createKeyAndRequest();
    await expect(ca.signHost(newHostId(), spoil(csrDer))).rejects.toMatchObject({ code: 'invalid-argument' });
  });
});
