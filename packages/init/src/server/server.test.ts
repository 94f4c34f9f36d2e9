import 'reflect-metadata';
import { once } from 'node:events';
import { connect as connectHttp2, constants, type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import { readdir } from 'node:fs/promises';
import { connect as connectTcp } from 'node:net';
import type { ConnectionOptions } from 'node:tls';
import * as x509 from '@peculiar/x509';
import { findTrailerError } from '@connectrpc/connect/protocol-grpc';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createKeyAndRequest } from '@drover/pki';
import { newHostId, newSandboxId, type DroverError, type SandboxId } from '@drover/foundation';
import { fromConnectError } from '@drover/protocol/rpc';
import { maxSessionMessageBytes } from '@drover/spec';
import { connectTls, createTestAuthority, startInit, type TestAuthority, type TestInit } from '../testing/index.ts';
import { handshakeTimeoutMs, maxConnections } from '../limits.ts';
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

/** The bytes that a peer with these options receives before the connection ends: none if it is refused. */
async function bytesReceived(options: Parameters<typeof connectTls>[2]): Promise<number> {
  let bytes = 0;
  try {
    const socket = await connectTls(trusted, box.port, options);
    socket.on('data', (data: Buffer) => (bytes += data.length));
    socket.on('error', () => undefined);
    // The preface and a SETTINGS frame: a server that accepts the connection responds with its own.
    socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0');
    await Promise.race([once(socket, 'close'), once(socket, 'data')]);
    socket.destroy();
  } catch {
    // Refused in the handshake.
  }
  return bytes;
}

interface Presented {
  readonly cert: string;
  readonly key: string;
}

async function hostCertificate(): Promise<Presented> {
  const { keyPem, csrDer } = createKeyAndRequest();
  const { certificatePem } = await trusted.authority.signHost(newHostId(), csrDer);
  return { cert: certificatePem, key: keyPem };
}

interface Forgery {
  readonly commonName?: string;
  readonly uris?: readonly string[];
  readonly usages?: readonly string[];
  /** From now. Milliseconds. */
  readonly expiresInMs?: number;
  /** The signer; default: the CA that init trusts. */
  readonly by?: TestAuthority;
}

/** A certificate like the control plane's, except for the given fields. */
async function forge({ commonName = 'control-plane', uris, usages, expiresInMs = 3_600_000, by = trusted }: Forgery): Promise<Presented> {
  const ca = new x509.X509Certificate(by.authority.caPem);
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const names = (uris ?? [trusted.authority.names.controlPlane()]).map((value) => ({ type: 'url' as const, value }));
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: '0a',
    subject: [{ CN: [commonName] }],
    issuer: ca.subject,
    notBefore: new Date(Date.now() - 2 * 3_600_000),
    notAfter: new Date(Date.now() + expiresInMs),
    signingAlgorithm: algorithm,
    signingKey: await crypto.subtle.importKey('pkcs8', x509.PemConverter.decodeFirst(by.caKeyPem), algorithm, false, ['sign']),
    publicKey: keys.publicKey,
    extensions: [
      ...(usages?.length === 0 ? [] : [new x509.ExtendedKeyUsageExtension([...(usages ?? both)])]),
      ...(names.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(names)]),
    ],
  });
  const key = x509.PemConverter.encode(await crypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY');
  return { cert: certificate.toString('pem'), key };
}

const { serverAuth, clientAuth } = x509.ExtendedKeyUsage;
const both = [serverAuth, clientAuth];

async function sandboxCertificate(id: SandboxId): Promise<Presented> {
  const { keyPem, csrDer } = createKeyAndRequest();
  const { certificatePem } = await trusted.authority.signSandbox(id, 'test.box', csrDer);
  return { cert: certificatePem, key: keyPem };
}

describe('I-3: init accepts only one peer', () => {
  it('accepts the control plane', async () => {
    expect(await bytesReceived({})).toBeGreaterThan(0);
  });

  it("accepts a handmade certificate equal to the control plane's", async () => {
    expect(await bytesReceived(await forge({}))).toBeGreaterThan(0);
  });

  const genuine = (): Presented => ({ cert: trusted.controlPlane.certificatePem, key: trusted.controlPlane.keyPem });
  const other = (): Presented => ({ cert: foreign.controlPlane.certificatePem, key: foreign.controlPlane.keyPem });
  const uri = (): string => trusted.authority.names.controlPlane();

  it.each<[string, () => ConnectionOptions | Promise<ConnectionOptions>, RegExp]>([
    ['no certificate', () => ({ cert: undefined, key: undefined }), /did not return a certificate/],
    ['a certificate of another CA', other, /UNABLE_TO_VERIFY_LEAF|SELF_SIGNED|SIGNATURE/],
    ['a certificate of another CA that names the control plane', async () => await forge({ by: foreign }), /SIGNATURE|verify_final/],
    ['an expired certificate', async () => await forge({ expiresInMs: -60_000 }), /CERT_HAS_EXPIRED/],
    ['a certificate that is for servers only', async () => await forge({ usages: [serverAuth] }), /PURPOSE/],
    ['a certificate without extended key usages', async () => await forge({ usages: [] }), /not for client authentication/],
    ['the common name without the URI', async () => await forge({ uris: [] }), /names someone else/],
    ['the URI of another trust domain', async () => await forge({ uris: ['spiffe://other.drover/control-plane'] }), /names someone else/],
    ['a URI that begins as the pinned one', async () => await forge({ uris: [`${uri()}/more`] }), /names someone else/],
    ['the pinned URI beside another', async () => await forge({ uris: [uri(), 'spiffe://test.drover/host/h'] }), /names someone else/],
    ["a host's certificate", hostCertificate, /names someone else/],
    ["its own sandbox's certificate", async () => await sandboxCertificate(box.config.sandboxId as SandboxId), /names someone else/],
    ["another sandbox's certificate", async () => await sandboxCertificate(newSandboxId()), /names someone else/],
    ['TLS 1.2', () => ({ ...genuine(), maxVersion: 'TLSv1.2' }), /protocol/],
  ])('refuses %s before a byte of it', async (_, options, reason) => {
    const seen = box.stderr().length;
    expect(await bytesReceived(await options())).toBe(0);
    await expect.poll(() => box.stderr().slice(seen)).toMatch(/refused a connection/);
    expect(box.stderr().slice(seen)).toMatch(reason);
  });
});

/** A silent connection; with `drip`, it sends a TLS record header and then a byte at a time. */
function silent(localAddress = '127.0.0.1', drip = false): Promise<number> {
  const began = performance.now();
  const socket = connectTcp({ port: box.port, host: '127.0.0.1', localAddress });
  socket.on('error', () => undefined).resume();
  if (drip) {
    socket.write(Buffer.from('16030300ff', 'hex'));
    const timer = setInterval(() => socket.write(Buffer.alloc(1)), 200);
    socket.once('close', () => clearInterval(timer));
  }
  return once(socket, 'close').then(() => performance.now() - began);
}

describe("init's port", () => {
  it('closes the connections of a silent and of a slow peer at the limit, and still accepts the control plane', async () => {
    const cut = Promise.all([silent(), silent('127.0.0.1', true)]);
    expect(await bytesReceived({})).toBeGreaterThan(0);
    for (const ms of await cut) expect(ms).toBeGreaterThan(handshakeTimeoutMs - 500);
  });

  it('closes connections of the host beyond the limit immediately, and accepts another for each that ends', async () => {
    const sockets = Array.from({ length: maxConnections }, () => connectTcp(box.port, '127.0.0.1'));
    await Promise.all(sockets.map(async (socket) => await once(socket, 'connect')));
    expect(await silent()).toBeLessThan(handshakeTimeoutMs / 2);
    for (const socket of sockets) socket.destroy();
    await expect.poll(async () => await bytesReceived({})).toBeGreaterThan(0);
  });

  it('closes connections from other addresses than the host’s immediately, without counting them', async () => {
    const foreign = Array.from({ length: maxConnections * 2 }, async () => await silent('127.0.0.2'));
    expect(await bytesReceived({})).toBeGreaterThan(0);
    for (const ms of await Promise.all(foreign)) expect(ms).toBeLessThan(handshakeTimeoutMs / 2);
    expect(box.stderr().match(/not from the host/g)).toHaveLength(1);
  });
});

it('I-6: key and config are deleted from the disk after they are read', async () => {
  expect((await readdir(box.runDirectory)).sort()).toEqual(['ca.pem', 'cert.pem']);
});

it('a URI quoted within another name is not a URI name', () => {
  expect(uriNames('DNS:"x, URI:spiffe://td/control-plane, y", URI:spiffe://td/host/h')).toEqual(['spiffe://td/host/h']);
});

/** A call without a gRPC library, to check the bytes on the wire. */
async function rawCall(method: string): Promise<{ session: ClientHttp2Session; stream: ClientHttp2Stream; error: Promise<DroverError> }> {
  const socket = await connectTls(trusted, box.port);
  const session = connectHttp2('https://init', { createConnection: () => socket });
  const stream = session.request({
    ':method': 'POST',
    ':path': `/drover.init.v1.InitService/${method}`,
    'content-type': 'application/grpc',
    te: 'trailers',
  });
  const error = once(stream, 'trailers').then(([trailers]) =>
    fromConnectError(findTrailerError(new Headers(Object.entries(trailers as Record<string, string>)))),
  );
  stream.resume();
  return { session, stream, error };
}

it('the protocol is gRPC: an unknown method is UNIMPLEMENTED in the trailers', async () => {
  const { session, stream, error } = await rawCall('Nothing');
  stream.end();
  expect(await error).toMatchObject({ status: 12, code: 'unimplemented' });
  session.destroy();
});

it('a message over the limit is RESOURCE_EXHAUSTED before it has arrived', async () => {
  const { session, stream, error } = await rawCall('Exec');
  const header = Buffer.alloc(5);
  header.writeUInt32BE(maxSessionMessageBytes + 1, 1);
  stream.write(header);
  expect(await error).toMatchObject({ status: 8, code: 'too-large' });
  session.destroy();
});

it('the stream of a client that sends after the response is closed without an error', async () => {
  const { session, stream, error } = await rawCall('Exec');
  // The first message of an exec must start or attach; an empty one does neither.
  stream.write(Buffer.alloc(5));
  expect(await error).toMatchObject({ status: 3, code: 'protocol-violation' });
  // More than the HTTP/2 window of an unread stream.
  stream.write(Buffer.alloc(1024 * 1024));
  await once(stream, 'close');
  expect(stream.rstCode).toBe(constants.NGHTTP2_NO_ERROR);
  session.destroy();
});
