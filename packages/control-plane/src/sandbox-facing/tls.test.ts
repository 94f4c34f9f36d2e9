import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openCertificateAuthority } from '@drover/pki';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { http1, registerJson } from './testing/calls.ts';
import { issue, selfSigned, signedBy } from './testing/certificates.ts';
import { World, type Box, type TlsOptions } from './testing/world.ts';

let world: World;
let host: Awaited<ReturnType<World['host']>>;
let box: Box;

beforeAll(async () => {
  world = await World.open();
  host = await world.host();
  box = await world.box(host);
});
afterAll(async () => await world[Symbol.asyncDispose]());

/** The bytes that a peer receives when it calls Register, none if TLS refuses it, and the log lines about it. */
async function answerTo(options: TlsOptions): Promise<{ readonly heard: string; readonly why: unknown }> {
  const before = world.log.length;
  let heard = '';
  try {
    const socket = await world.connect(box.origin, options);
    heard = (await http1(socket, 'register', { token: box.token, body: registerJson(box) })).raw;
  } catch (error) {
    // The client has completed the handshake.
    expect(String((error as NodeJS.ErrnoException).code)).toMatch(/^(ERR_SSL_|ECONNRESET|EPIPE|EPROTO)/);
  }
  const refused = world.log.slice(before).find(({ msg }) => msg === 'a sandbox did not get through the TLS handshake');
  return { heard, why: refused?.['why'] };
}

/** A leaf with the name of the sandbox, for any signer. */
const forged = (): { commonNames: string[]; uris: string[] } => ({
  commonNames: [`${box.project}.${box.name}`],
  uris: [world.ca.names.sandbox(box.id)],
});

describe('I-18: TLS requires a client certificate that chains to the CA, before any application data', () => {
  it('no certificate', async () => {
    expect(await answerTo({})).toMatchObject({ heard: '', why: expect.stringContaining('peer did not return a certificate') });
  });

  it('a self-signed certificate with the name of the sandbox', async () => {
    const credentials = await selfSigned(forged());
    for (const protocol of ['http/1.1', 'h2']) {
      const answer = await answerTo({ credentials, ALPNProtocols: [protocol] });
      expect(answer).toEqual({ heard: '', why: 'DEPTH_ZERO_SELF_SIGNED_CERT' });
    }
  });

  it('a certificate of another CA of the same trust domain, with the name of the sandbox, and with its chain', async () => {
    const directory = join(world.directory, 'foreign');
    const foreign = await openCertificateAuthority(directory, { trustDomain: world.ca.names.trustDomain });
    const alone = await issue(async (csrDer) => await foreign.signSandbox(box.id, `${box.project}.${box.name}`, csrDer));
    expect(await answerTo({ credentials: alone })).toEqual({ heard: '', why: 'UNABLE_TO_VERIFY_LEAF_SIGNATURE' });
    const chain = { ...alone, certificatePem: alone.certificatePem + foreign.caPem };
    expect(await answerTo({ credentials: chain })).toEqual({ heard: '', why: 'SELF_SIGNED_CERT_IN_CHAIN' });
    const root = { certificatePem: foreign.caPem, keyPem: await readFile(join(directory, 'ca-key.pem'), 'utf8'), thumbprint: '' };
    expect((await answerTo({ credentials: root })).heard).toBe('');
  });

  it('a forged name under the genuine leaf of another sandbox: a leaf signs nothing', async () => {
    const other = await world.box(host);
    const child = await signedBy(other.credentials, forged());
    const carried = { ...child, certificatePem: child.certificatePem + other.credentials.certificatePem + world.ca.caPem };
    expect((await answerTo({ credentials: carried })).heard).toBe('');
  });

  it('TLS 1.2', async () => {
    const { heard, why } = await answerTo({ credentials: box.credentials, maxVersion: 'TLSv1.2' });
    expect(heard).toBe('');
    expect(why).toMatch(/unsupported protocol/);
  });

  it('a certificate of the CA for server authentication only', async () => {
    const credentials = await world.signByHand({ ...forged(), usages: ['1.3.6.1.5.5.7.3.1'] });
    expect(await answerTo({ credentials })).toEqual({ heard: '', why: 'INVALID_PURPOSE' });
  });

  it('an expired certificate', async () => {
    const expired = await openCertificateAuthority(world.authorityDirectory, {
      trustDomain: world.ca.names.trustDomain,
      lifetimes: { sandboxMs: -1_000 },
    });
    const credentials = await issue(async (csrDer) => await expired.signSandbox(box.id, `${box.project}.${box.name}`, csrDer));
    expect(await answerTo({ credentials })).toEqual({ heard: '', why: 'CERT_HAS_EXPIRED' });
  });

  it('the right certificate is accepted', async () => {
    const { heard } = await answerTo({ credentials: box.credentials });
    expect(heard).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  });

  it('leaves no connection behind', async () => {
    await expect.poll(() => world.listener.connections, { timeout: 10_000 }).toBe(0);
  });
});

it('no TLS session is resumed: every connection shows its certificate', async () => {
  const sessions: Buffer[] = [];
  const first = await world.as(box);
  first.on('session', (session) => sessions.push(session));
  expect((await http1(first, 'register', { token: box.token, body: registerJson(box) })).status).toBe(200);
  for (const session of sessions) {
    const again = await world.connect(box.origin, { credentials: box.credentials, session });
    expect(again.isSessionReused()).toBe(false);
    again.destroy();
  }
});

it('a rotated certificate is presented to new connections, which still require a client certificate', async () => {
  const staying = await world.as(box, 'http/1.1');
  const before = staying.getPeerX509Certificate()?.serialNumber;
  const identity = await world.ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: [] });
  world.listener.rotate(identity);
  const next = await world.as(box);
  expect(next.getPeerX509Certificate()?.serialNumber).not.toBe(before);
  next.destroy();
  expect((await http1(staying, 'register', { token: box.token, body: registerJson(box) })).status).toBe(200);
  expect((await answerTo({})).heard).toBe('');
  const foreign = await selfSigned(forged());
  expect((await answerTo({ credentials: foreign })).heard).toBe('');
  expect((await answerTo({ credentials: box.credentials, maxVersion: 'TLSv1.2' })).heard).toBe('');
});

describe('a handshake', () => {
  it('that is not TLS ends the connection', async () => {
    const socket = await world.socket(box.origin);
    socket.end('GET / HTTP/1.1\r\nHost: control\r\n\r\n');
    socket.resume();
    await once(socket, 'close');
    await expect.poll(() => world.listener.connections, { timeout: 10_000 }).toBe(0);
  });

  it('is not begun for a connection whose host names no sandbox', async () => {
    const socket = await world.socket({ ...box.origin, sandboxId: 'no-sandbox' });
    await once(socket.resume(), 'close');
    await expect(world.connect({ ...box.origin, sandboxId: '' }, { credentials: box.credentials })).rejects.toMatchObject({
      code: 'ECONNRESET',
    });
  });
});
