import { once } from 'node:events';
import { createSecureServer, type Http2SecureServer } from 'node:http2';
import { readFile, readdir, stat } from 'node:fs/promises';
import { createServer as createTcpServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import { Code, ConnectError } from '@connectrpc/connect';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { newHostId, newSandboxId, type SandboxId } from '@drover/foundation';
import { createKeyAndRequest, thumbprintOf } from '@drover/pki';
import { control } from '@drover/protocol';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { earlyConnectionMs } from '../limits.ts';
import {
  connectTls,
  createTestAuthority,
  startInit,
  TestSession,
  type Credentials,
  type TestAuthority,
  type TestInit,
} from '../testing/index.ts';

let trusted: TestAuthority;
let foreign: TestAuthority;
let server: ControlServer;
let box: TestInit;
let session: TestSession;

beforeAll(async () => {
  trusted = await createTestAuthority();
  foreign = await createTestAuthority();
});
afterAll(async () => {
  await trusted.close();
  await foreign.close();
});

interface SeenCall {
  readonly project: string;
  readonly name: string;
  readonly authorization: string | null;
  readonly thumbprint: string;
}

/** The control plane's sandbox-facing listener, as far as Register needs it. */
class ControlServer {
  readonly #server: Http2SecureServer;
  readonly calls: SeenCall[] = [];
  open = 0;
  connections = 0;
  answer: () => Promise<string> = async () => 'access';

  constructor(credentials: Credentials, options: { readonly maxVersion?: 'TLSv1.2' } = {}) {
    const handler = connectNodeAdapter({
      routes: (router) =>
        router.service(control.ControlService, {
          register: async (request, context) => {
            const { project, name } = request;
            this.calls.push({ project, name, authorization: context.requestHeader.get('authorization'), thumbprint: this.#peer });
            return { accessToken: await this.answer() };
          },
        }),
    });
    this.#server = createSecureServer({
      cert: credentials.certificatePem,
      key: credentials.keyPem,
      ca: trusted.authority.caPem,
      requestCert: true,
      rejectUnauthorized: true,
      allowHTTP1: true,
      ...options,
    });
    this.#server.on('request', handler);
    this.#server.on('secureConnection', (socket) => {
      const { raw } = socket.getPeerCertificate();
      this.#peer = thumbprintOf(`-----BEGIN CERTIFICATE-----\n${raw.toString('base64')}\n-----END CERTIFICATE-----\n`);
      this.connections++;
      this.open++;
      this.#sockets.add(socket);
      socket.on('close', () => {
        this.open--;
        this.#sockets.delete(socket);
      });
      socket.on('error', () => undefined);
    });
    this.#server.on('sessionError', () => undefined);
  }
  #peer = '';
  readonly #sockets = new Set<TLSSocket>();

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async listen(port = 0): Promise<number> {
    this.#server.listen(port, '127.0.0.1');
    await once(this.#server, 'listening');
    return (this.#server.address() as AddressInfo).port;
  }

  close(): void {
    this.#server.close();
  }
}

async function start(port: number, token: string | undefined = 'bootstrap'): Promise<void> {
  box = await startInit(trusted, {
    project: 'shop',
    name: 'web',
    control: { host: '127.0.0.1', port },
    ...(token !== '' && { token }),
  });
  session = new TestSession(await box.client());
}

const register = async (bootstrapToken = ''): Promise<string | undefined> =>
  (await session.ask({ case: 'registerRequired', value: { bootstrapToken } })).case;

afterEach(async () => {
  session.cut();
  server.close();
  await box.close();
});

describe('I-13: Register', () => {
  it('claims the names, with the certificate and the single-use token, which left the disk', async () => {
    server = new ControlServer(trusted.controlPlane);
    await start(await server.listen());
    expect(await readdir(box.runDirectory)).not.toContain('token');
    expect(await register()).toBe('registerDone');
    const thumbprint = thumbprintOf(await readFile(join(box.runDirectory, 'cert.pem'), 'utf8'));
    expect(server.calls).toEqual([{ project: 'shop', name: 'web', authorization: 'Bearer bootstrap', thumbprint }]);
    await expect.poll(() => server.open).toBe(0);
  });

  it('goes over the connection that was made when init began to listen', async () => {
    server = new ControlServer(trusted.controlPlane);
    await start(await server.listen());
    await expect.poll(() => server.open).toBe(1);
    expect(server.calls).toEqual([]);
    expect(await register()).toBe('registerDone');
    expect(server.connections).toBe(1);
  });

  it('goes over another one when that has ended meanwhile', async () => {
    server = new ControlServer(trusted.controlPlane);
    await start(await server.listen());
    await expect.poll(() => server.open).toBe(1);
    server.cut();
    await expect.poll(() => server.open).toBe(0);
    expect(await register()).toBe('registerDone');
    expect(server.connections).toBe(2);
  });

  it('a sandbox that is not asked to register does not keep its connection', async () => {
    server = new ControlServer(trusted.controlPlane);
    await start(await server.listen());
    await expect.poll(() => server.open).toBe(1);
    await expect.poll(() => server.open, { timeout: 2 * earlyConnectionMs }).toBe(0);
    expect((await session.ask({ case: 'ping', value: {} })).case).toBe('pong');
  });

  it('uses the fresh token in the request', async () => {
    server = new ControlServer(trusted.controlPlane);
    await start(await server.listen());
    await register('fresh');
    expect(server.calls).toMatchObject([{ authorization: 'Bearer fresh' }]);
  });

  it('is called once while it is asked for many times, and holds up nothing else', async () => {
    server = new ControlServer(trusted.controlPlane);
    const held = Promise.withResolvers<string>();
    server.answer = async () => await held.promise;
    await start(await server.listen());
    const answers = [register(), register(), register('other')];
    await expect.poll(() => server.calls.length).toBe(1);
    expect((await session.ask({ case: 'ping', value: {} })).case).toBe('pong');
    held.resolve('access');
    expect(await Promise.all(answers)).toEqual(['registerDone', 'registerDone', 'registerDone']);
    expect(server.calls.length).toBe(1);
  });

  it('is tried again while the connection cannot be had or breaks', async () => {
    // A port without a listener, then a listener that hangs up, then the control plane.
    const hangsUp = createTcpServer((socket) => socket.destroy());
    hangsUp.listen(0, '127.0.0.1');
    await once(hangsUp, 'listening');
    const { port } = hangsUp.address() as AddressInfo;
    const hungUp = once(hangsUp, 'connection');
    server = new ControlServer(trusted.controlPlane);
    await start(port);
    const answer = register();
    await hungUp;
    await new Promise((resolve) => hangsUp.close(resolve));
    await server.listen(port);
    expect(await answer).toBe('registerDone');
  });

  it.each([
    [Code.PermissionDenied, 'permission-denied'],
    [Code.InvalidArgument, 'invalid-argument'],
  ])('is not tried again after an answer (%i)', async (code, expected) => {
    server = new ControlServer(trusted.controlPlane);
    server.answer = async () => await Promise.reject(new ConnectError('not you', code));
    await start(await server.listen());
    await expect(register()).rejects.toMatchObject({ code: expected, message: 'not you' });
    expect(server.calls.length).toBe(1);
    // And the session stays.
    expect((await session.ask({ case: 'ping', value: {} })).case).toBe('pong');
  });

  it('without a token fails with the reason', async () => {
    server = new ControlServer(trusted.controlPlane);
    await start(await server.listen(), '');
    await expect(register()).rejects.toMatchObject({ code: 'failed-precondition' });
  });
});

describe('I-13: the token is sent to the control plane only', () => {
  const sandboxCredentials = async (): Promise<Credentials> => {
    const { keyPem, csrDer } = createKeyAndRequest();
    return { keyPem, certificatePem: (await trusted.authority.signSandbox(newSandboxId(), 'other.box', csrDer)).certificatePem };
  };
  const hostCredentials = async (): Promise<Credentials> => {
    const { keyPem, csrDer } = createKeyAndRequest();
    return { keyPem, certificatePem: (await trusted.authority.signHost(newHostId(), csrDer)).certificatePem };
  };

  it.each<[string, () => Promise<Credentials>]>([
    ['another CA', () => Promise.resolve(foreign.controlPlane)],
    ['another sandbox', sandboxCredentials],
    ['a host, whose certificate is for clients only', hostCredentials],
  ])('not to %s', async (_, credentials) => {
    server = new ControlServer(await credentials());
    await start(await server.listen());
    await expect(register()).rejects.toMatchObject({ code: 'ca-mismatch' });
    expect(server.calls).toEqual([]);
  });
});

describe('I-6: a renewed certificate', () => {
  beforeEach(async () => {
    server = new ControlServer(trusted.controlPlane);
    await start(await server.listen());
  });

  /** A new certificate for the key that the box has: what is asked for is signed for the same public key. */
  async function renewed(id: string = box.config.sandboxId, commonName = 'shop.web'): Promise<string> {
    return (await trusted.authority.signSandbox(id as SandboxId, commonName, box.csrDer)).certificatePem;
  }
  const install = async (certificatePem: string): Promise<string | undefined> =>
    (await session.ask({ case: 'installCertificate', value: { certificatePem } })).case;
  const thumbprintNow = async (): Promise<string> => {
    const socket: TLSSocket = await connectTls(trusted, box.port);
    const { raw } = socket.getPeerCertificate();
    socket.destroy();
    return thumbprintOf(`-----BEGIN CERTIFICATE-----\n${raw.toString('base64')}\n-----END CERTIFICATE-----\n`);
  };

  it('answers new connections, registers, and is on disk; connections that stand go on', async () => {
    const certificatePem = await renewed();
    const thumbprint = thumbprintOf(certificatePem);
    expect(await thumbprintNow()).not.toBe(thumbprint);
    expect(await install(certificatePem)).toBe('certificateInstalled');
    expect(await thumbprintNow()).toBe(thumbprint);
    expect((await session.ask({ case: 'ping', value: {} })).case).toBe('pong');
    await register();
    expect(server.calls).toMatchObject([{ thumbprint }]);
    expect(await readFile(join(box.runDirectory, 'cert.pem'), 'utf8')).toBe(certificatePem);
    expect((await stat(join(box.runDirectory, 'cert.pem'))).mode & 0o777).toBe(0o400);
  });

  it('I-3: is served under the same conditions as the one before it', async () => {
    await install(await renewed());
    await expect(connectTls(trusted, box.port, { maxVersion: 'TLSv1.2' })).rejects.toThrow();
    const stranger = await connectTls(trusted, box.port, { cert: foreign.controlPlane.certificatePem, key: foreign.controlPlane.keyPem });
    stranger.on('error', () => undefined);
    let bytes = 0;
    stranger.on('data', (data: Buffer) => (bytes += data.length));
    await once(stranger, 'close');
    expect(bytes).toBe(0);
  });

  it.each<[string, () => Promise<string>, string]>([
    ['another key', async () => (await createOther()).certificatePem, 'it is for another key'],
    ['another sandbox', async () => await renewed(newSandboxId()), 'it has other names'],
    ['another name', async () => await renewed(box.config.sandboxId, 'shop.db'), 'it has other names'],
    ['nothing at all', () => Promise.resolve('-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n'), 'it cannot be parsed'],
  ])('for %s is refused, and the one before it stays', async (_, certificate, message) => {
    const before = await thumbprintNow();
    await expect(install(await certificate())).rejects.toMatchObject({
      code: 'invalid-argument',
      message: expect.stringContaining(message),
    });
    expect(await thumbprintNow()).toBe(before);
  });

  async function createOther(): Promise<{ certificatePem: string }> {
    const { csrDer } = createKeyAndRequest();
    return await trusted.authority.signSandbox(box.config.sandboxId as SandboxId, 'shop.web', csrDer);
  }
});
