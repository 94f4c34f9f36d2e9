import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { Duplex } from 'node:stream';
import { connect as connectTcp } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { createClient, type Client } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { newSandboxId } from '@drover/foundation';
import { createKeyAndRequest, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { init } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { buildInitBundle, initNodeFlags, ptyAddonPath } from './bundle.ts';
import type { InitConfig, MainProcess } from './config.ts';

/** For tests: the real init as a real process with real certificates, and clients of it. */

export interface Credentials {
  readonly certificatePem: string;
  readonly keyPem: string;
}

export interface TestAuthority {
  readonly authority: CertificateAuthority;
  readonly controlPlane: Credentials;
  readonly caKeyPem: string;
  close(): Promise<void>;
}

export async function createTestAuthority(): Promise<TestAuthority> {
  const directory = await mkdtemp(join(tmpdir(), 'drover-init-ca-'));
  const authority = await openCertificateAuthority(directory, { trustDomain: 'test.drover' });
  const controlPlane = await authority.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
  const caKeyPem = await readFile(join(directory, 'ca-key.pem'), 'utf8');
  return { authority, controlPlane, caKeyPem, close: () => rm(directory, { recursive: true, force: true }) };
}

export interface TestInit {
  readonly process: ChildProcess;
  readonly pid: number;
  readonly port: number;
  readonly runDirectory: string;
  readonly config: InitConfig;
  /** What init wrote to stderr so far. */
  readonly stderr: () => string;
  readonly exited: Promise<number>;
  client(): Promise<TestClient>;
  close(): Promise<void>;
}

export interface TestClient extends AsyncDisposable {
  readonly init: Client<typeof init.InitService>;
  readonly socket: TLSSocket;
}

export interface StartOptions {
  readonly main?: Partial<MainProcess>;
  readonly stopGraceMs?: number;
  readonly idleStopMs?: number;
  /** Before the path of node: `unshare …`. */
  readonly launcher?: readonly string[];
  readonly runDirectory?: string;
}

export async function startInit(test: TestAuthority, options: StartOptions = {}): Promise<TestInit> {
  const bundle = await buildInitBundle();
  const runDirectory = options.runDirectory ?? (await mkdtemp(join(tmpdir(), 'drover-init-run-')));
  const id = newSandboxId();
  const { keyPem, csrDer } = await createKeyAndRequest();
  const { certificatePem } = await test.authority.signSandbox(id, 'test.box', csrDer);
  const config: InitConfig = {
    version: 1,
    sandboxId: id,
    hostname: 'box',
    controlPlaneUri: test.authority.names.controlPlane(),
    listen: { host: '127.0.0.1', port: 0 },
    main: {
      argv: ['sleep', '1000'],
      env: [],
      workdir: '/',
      user: '',
      terminal: false,
      rows: 24,
      columns: 80,
      stdin: false,
      stopSignal: 'SIGTERM',
      ...options.main,
    },
    stopGraceMs: options.stopGraceMs ?? 5_000,
    ...(options.idleStopMs !== undefined && { idleStopMs: options.idleStopMs }),
    startCount: 1,
  };
  await Promise.all([
    writeFile(join(runDirectory, 'config.json'), JSON.stringify(config), { mode: 0o400 }),
    writeFile(join(runDirectory, 'ca.pem'), test.authority.caPem, { mode: 0o400 }),
    writeFile(join(runDirectory, 'cert.pem'), certificatePem, { mode: 0o400 }),
    writeFile(join(runDirectory, 'key.pem'), keyPem, { mode: 0o400 }),
  ]);
  const command = [...(options.launcher ?? []), process.execPath, ...initNodeFlags, bundle, runDirectory];
  const child = spawn(command[0] ?? '', command.slice(1), {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { DROVER_PTY_ADDON: ptyAddonPath() ?? '' },
  });
  let stderr = '';
  child.stderr.on('data', (data: Buffer) => {
    stderr += data.toString();
  });
  const exited = once(child, 'exit').then(([code, signal]) => (typeof code === 'number' ? code : signal === null ? 0 : 255));
  const port = await new Promise<number>((resolve, reject) => {
    let text = '';
    child.stdout.on('data', (data: Buffer) => {
      text += data.toString();
      const match = /listening on (\d+)/.exec(text);
      if (match !== null) resolve(Number(match[1]));
    });
    child.once('error', reject);
    void exited.then((code) => reject(new Error(`init ended with ${code}: ${stderr}`)));
  });
  const clients: TestClient[] = [];
  return {
    process: child,
    pid: child.pid ?? 0,
    port,
    runDirectory,
    config,
    stderr: () => stderr,
    exited,
    client: async () => {
      const client = await connectClient(test, port);
      clients.push(client);
      return client;
    },
    close: async () => {
      for (const client of clients) await client[Symbol.asyncDispose]();
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
      await exited;
      if (options.runDirectory === undefined) await rm(runDirectory, { recursive: true, force: true });
    },
  };
}

/** A TLS connection with `credentials`, as far as the client's side sees it. */
export async function connectTls(test: TestAuthority, port: number, options: ConnectionOptions = {}): Promise<TLSSocket> {
  const tcp: Duplex = connectTcp(port, '127.0.0.1');
  const socket = connect({
    socket: tcp,
    cert: test.controlPlane.certificatePem,
    key: test.controlPlane.keyPem,
    ca: test.authority.caPem,
    rejectUnauthorized: false,
    ALPNProtocols: ['h2'],
    ...options,
  });
  await once(socket, 'secureConnect');
  return socket;
}

export async function connectClient(test: TestAuthority, port: number): Promise<TestClient> {
  const socket = await connectTls(test, port);
  const manager = new ReadableSessionManager('https://init', {}, { createConnection: () => socket });
  return {
    init: createClient(init.InitService, createGrpcTransport({ baseUrl: 'https://init', sessionManager: manager })),
    socket,
    [Symbol.asyncDispose]: async () => {
      manager.abort();
      socket.destroy();
    },
  };
}
