import 'reflect-metadata';
import { once } from 'node:events';
import { connect as connectHttp2, constants, type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import { readdir } from 'node:fs/promises';
import * as x509 from '@peculiar/x509';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createKeyAndRequest } from '@drover/pki';
import { newHostId } from '@drover/foundation';
import { connectTls, createTestAuthority, startInit, type TestAuthority, type TestInit } from '../testing.ts';
import { maxMessageBytes } from '../limits.ts';
import { uriNames } from './tls.ts';

let trusted: TestAuthority;
let foreign: TestAuthority;
let box: TestInit;

beforeAll(async () => {
  trusted = await createTestAuthority();
  foreign = await createTestAuthority();
  box = await startInit(trusted);
});
afterAll(async () => {
  await box.close();
  await trusted.close();
  await foreign.close();
});

/** What a peer with these options gets to read before the connection ends: nothing, when it is refused. */
async function bytesReceived(options: Parameters<typeof connectTls>[2]): Promise<number> {
  let bytes = 0;
  try {
    const socket = await connectTls(trusted, box.port, options);
    socket.on('data', (data: Buffer) => (bytes += data.length));
    socket.on('error', () => undefined);
    // The preface and a SETTINGS frame: a server that takes the connection answers with its own.
    socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0');
    await Promise.race([once(socket, 'close'), once(socket, 'data')]);
    socket.destroy();
  } catch {
    // Refused in the handshake already.
  }
  return bytes;
}

async function hostCertificate(): Promise<{ cert: string; key: string }> {
  const { keyPem, csrDer } = await createKeyAndRequest();
  const { certificatePem } = await trusted.authority.signHost(newHostId(), csrDer);
  return { cert: certificatePem, key: keyPem };
}

/** The control plane's name, signed by the CA, for server authentication alone. */
async function serverOnlyCertificate(): Promise<{ cert: string; key: string }> {
  const ca = new x509.X509Certificate(trusted.authority.caPem);
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: '0a',
    subject: 'CN=control-plane',
    issuer: ca.subject,
    notBefore: new Date(Date.now() - 60_000),
    notAfter: new Date(Date.now() + 3_600_000),
    signingAlgorithm: algorithm,
    signingKey: await crypto.subtle.importKey('pkcs8', x509.PemConverter.decodeFirst(trusted.caKeyPem), algorithm, false, ['sign']),
    publicKey: keys.publicKey,
    extensions: [
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension([{ type: 'url', value: trusted.authority.names.controlPlane() }]),
    ],
  });
  const key = x509.PemConverter.encode(await crypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY');
  return { cert: certificate.toString('pem'), key };
}

describe('I-3: init takes one peer only', () => {
  it('answers the control plane', async () => {
    expect(await bytesReceived({})).toBeGreaterThan(0);
  });

  it('refuses a peer without a certificate', async () => {
    expect(await bytesReceived({ cert: undefined, key: undefined })).toBe(0);
  });

  it('refuses a certificate of another CA, whatever it names', async () => {
    expect(await bytesReceived({ cert: foreign.controlPlane.certificatePem, key: foreign.controlPlane.keyPem })).toBe(0);
  });

  it('refuses a certificate of the CA that names a host', async () => {
    expect(await bytesReceived(await hostCertificate())).toBe(0);
    expect(box.stderr()).toContain('names someone else');
  });

  it('refuses the certificate of a sandbox', async () => {
    const { keyPem, csrDer } = await createKeyAndRequest();
    const { certificatePem } = await trusted.authority.signSandbox(box.config.sandboxId as never, 'test.box', csrDer);
    expect(await bytesReceived({ cert: certificatePem, key: keyPem })).toBe(0);
  });

  it('refuses the pinned name in a certificate that is not for clients', async () => {
    expect(await bytesReceived(await serverOnlyCertificate())).toBe(0);
  });

  it('refuses TLS 1.2', async () => {
    expect(await bytesReceived({ maxVersion: 'TLSv1.2' })).toBe(0);
  });
});

it('I-6: key and config leave the disk once read', async () => {
  expect((await readdir(box.runDirectory)).sort()).toEqual(['ca.pem', 'cert.pem']);
});

it('a name quoted into another name is not a URI name', () => {
  expect(uriNames('DNS:"x, URI:spiffe://td/control-plane, y", URI:spiffe://td/host/h')).toEqual(['spiffe://td/host/h']);
});

/** A call without a gRPC library: what the wire itself carries. */
async function rawCall(method: string): Promise<{ session: ClientHttp2Session; stream: ClientHttp2Stream; trailers: Promise<unknown> }> {
  const socket = await connectTls(trusted, box.port);
  const session = connectHttp2('https://init', { createConnection: () => socket });
  const stream = session.request({
    ':method': 'POST',
    ':path': `/drover.init.v1.InitService/${method}`,
    'content-type': 'application/grpc',
    te: 'trailers',
  });
  const trailers = once(stream, 'trailers').then(([headers]) => headers as unknown);
  stream.resume();
  return { session, stream, trailers };
}

it('the wire is gRPC: an unknown method is UNIMPLEMENTED in the trailers', async () => {
  const { session, stream, trailers } = await rawCall('Nothing');
  stream.end();
  expect(await trailers).toMatchObject({ 'grpc-status': '12', 'drover-code': 'unimplemented' });
  session.destroy();
});

it('a message over the limit is RESOURCE_EXHAUSTED before it has arrived', async () => {
  const { session, stream, trailers } = await rawCall('Exec');
  const header = Buffer.alloc(5);
  header.writeUInt32BE(maxMessageBytes + 1, 1);
  stream.write(header);
  expect(await trailers).toMatchObject({ 'grpc-status': '8', 'drover-code': 'too-large' });
  session.destroy();
});

it('a client that goes on sending after its answer has its stream closed without an error', async () => {
  const { session, stream, trailers } = await rawCall('Exec');
  // The first message of an exec must start or attach; an empty one does neither.
  stream.write(Buffer.alloc(5));
  expect(await trailers).toMatchObject({ 'grpc-status': '3', 'drover-code': 'protocol-violation' });
  // More than HTTP/2 would take for a stream that is not read.
  stream.write(Buffer.alloc(1024 * 1024));
  await once(stream, 'close');
  expect(stream.rstCode).toBe(constants.NGHTTP2_NO_ERROR);
  session.destroy();
});
