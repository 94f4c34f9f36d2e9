import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { Duplex, Readable } from 'node:stream';
import { connect as connectTcp } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { createClient, type Client } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { BoundedQueue, canonicalCommonName, newSandboxId, parseName, parseProject } from '@drover/foundation';
import { createKeyAndRequest, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { init } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { buildInitBundle, initNodeFlags, ptyAddonPath } from '../bundle.ts';
import { gateVariable, standbyFile, standbyVariable, type InitConfig, type MainProcess } from '../config.ts';

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
  /** The request that its certificate answers, to have others signed for its key. */
  readonly csrDer: Uint8Array;
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
  /** `project` and `name` are the certificate's too. */
  readonly project?: string;
  readonly name?: string;
  /** Where it registers (I-13). */
  readonly control?: { readonly host: string; readonly port: number };
  /** The bootstrap token that it is started with. */
  readonly token?: string;
  /** Init is started before its run directory is made, and this gate opens after it; given up when it rejects. */
  readonly gate?: Promise<void>;
  /** Init is a standby: called once it says that it is ready; its gate, which need not be given, opens after it. `unheard`: `gate` alone does. */
  readonly standby?: 'unheard' | ((standby: { readonly pid: number; readonly runDirectory: string }) => Promise<void>);
}

export async function startInit(test: TestAuthority, options: StartOptions = {}): Promise<TestInit> {
  const waits = options.gate !== undefined || options.standby !== undefined;
  // Awaited when init runs.
  options.gate?.catch(() => undefined);
  const bundle = await buildInitBundle();
  const runDirectory = options.runDirectory ?? (await mkdtemp(join(tmpdir(), 'drover-init-run-')));
  const id = newSandboxId();
  const commonName = canonicalCommonName(parseProject(options.project ?? 'test'), parseName(options.name ?? 'box'));
  const { keyPem, csrDer } = createKeyAndRequest();
  const { certificatePem } = await test.authority.signSandbox(id, commonName, csrDer);
  const config: InitConfig = {
    version: 1,
    sandboxId: id,
    hostname: 'box',
    controlPlaneUri: test.authority.names.controlPlane(),
    ...(options.control !== undefined && { control: options.control }),
    project: options.project ?? 'test',
    name: options.name ?? 'box',
    listen: { host: '127.0.0.1', port: 0, peer: '127.0.0.1' },
    main: {
      argv: ['sleep', '1000'],
      env: [],
      workdir: '/',
      user: '',
      terminal: false,
      rows: 24,
      columns: 80,
      stdin: false,
      stopSignal: 15,
      ...options.main,
    },
    stopGraceMs: options.stopGraceMs ?? 5_000,
    ...(options.idleStopMs !== undefined && { idleStopMs: options.idleStopMs }),
    startCount: 1,
  };
  const complete = async (): Promise<void> =>
    void (await Promise.all([
      writeFile(join(runDirectory, 'config.json'), JSON.stringify(config), { mode: 0o400 }),
      writeFile(join(runDirectory, 'ca.pem'), test.authority.caPem, { mode: 0o400 }),
      writeFile(join(runDirectory, 'cert.pem'), certificatePem, { mode: 0o400 }),
      writeFile(join(runDirectory, 'key.pem'), keyPem, { mode: 0o400 }),
      ...(options.token === undefined ? [] : [writeFile(join(runDirectory, 'token'), options.token, { mode: 0o400 })]),
    ]));
  if (!waits) await complete();
  const command = [...(options.launcher ?? []), process.execPath, ...initNodeFlags, bundle, runDirectory];
  const child = spawn(command[0] ?? '', command.slice(1), {
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    env: {
      DROVER_PTY_ADDON: ptyAddonPath() ?? '',
      ...(waits && { [gateVariable]: '3' }),
      ...(options.standby !== undefined && { [standbyVariable]: '1' }),
    },
  });
  // Those of the standard streams that were asked for are there.
  const [, stdout, errors, gate] = child.stdio as unknown as [null, Readable, Readable, Duplex];
  void (async () => {
    try {
      await options.gate;
      if (typeof options.standby === 'function') {
        while (!existsSync(join(runDirectory, standbyFile)) && child.exitCode === null) await sleep(10);
        await options.standby({ pid: child.pid ?? 0, runDirectory });
      }
      if (waits) await complete();
    } catch {
      // Given up: the gate opens onto nothing.
    }
    gate.destroy();
  })();
  let stderr = '';
  errors.on('data', (data: Buffer) => {
    stderr += data.toString();
  });
  const exited = once(child, 'exit').then(([code, signal]) => (typeof code === 'number' ? code : signal === null ? 0 : 255));
  const port = await new Promise<number>((resolve, reject) => {
    let text = '';
    stdout.on('data', (data: Buffer) => {
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
    csrDer,
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

type SessionPayload = NonNullable<MessageInitShape<typeof init.SessionRequestSchema>['payload']>;

/** A session as the control plane holds one: requests by number, and each one's answers. */
export class TestSession {
  readonly #requests = new BoundedQueue<init.SessionRequest>({ name: 'requests', capacity: 1_000 });
  readonly #answers = new Map<bigint, BoundedQueue<init.SessionResponse>>();
  readonly #abort = new AbortController();
  #id = 0n;
  /** Resolves when the stream has ended, however. */
  readonly ended: Promise<void>;

  constructor(client: TestClient) {
    this.ended = (async () => {
      try {
        for await (const response of client.init.session(this.#requests, { signal: this.#abort.signal })) {
          this.#answersTo(response.id).push(response);
        }
      } catch {
        // The connection ended, or this side cut it.
      }
      for (const answers of this.#answers.values()) answers.end();
    })();
  }

  /** Sends a request; its answers come in order. Those to 0 are the notices. */
  send(payload: SessionPayload): AsyncIterator<init.SessionResponse> {
    const id = ++this.#id;
    const answers = this.#answersTo(id);
    this.#requests.push(create(init.SessionRequestSchema, { id, payload }));
    return answers[Symbol.asyncIterator]();
  }

  notices(): AsyncIterator<init.SessionResponse> {
    return this.#answersTo(0n)[Symbol.asyncIterator]();
  }

  /** A request that has one answer. @throws {TestRefusal} */
  async ask(payload: SessionPayload): Promise<init.SessionResponse['payload']> {
    return await nextAnswer(this.send(payload));
  }

  /** Runs a step of the plan to its end. @throws {TestRefusal} */
  async step(request: MessageInitShape<typeof init.RunStepSchema>): Promise<TestStepEnd> {
    const step = await this.startStep(request);
    return await step.end();
  }

  async startStep(request: MessageInitShape<typeof init.RunStepSchema>): Promise<TestStep> {
    const answers = this.send({ case: 'runStep', value: request });
    const started = await nextAnswer(answers);
    if (started.case !== 'stepStarted') throw new Error(`${String(started.case)} instead of stepStarted`);
    return new TestStep(started.value, answers);
  }

  /** Breaks the stream, as a lost connection does. */
  cut(): void {
    this.#abort.abort();
    this.#requests.end();
  }

  #answersTo(id: bigint): BoundedQueue<init.SessionResponse> {
    let answers = this.#answers.get(id);
    if (answers === undefined) {
      answers = new BoundedQueue({ name: 'answers', capacity: 10_000 });
      this.#answers.set(id, answers);
    }
    return answers;
  }
}

export interface TestStepEnd {
  readonly joined: boolean;
  readonly code: number;
  readonly signal: string;
  readonly timedOut: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

export class TestStep {
  readonly pid: number;
  readonly joined: boolean;
  readonly #answers: AsyncIterator<init.SessionResponse>;
  readonly #decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  stdout = '';
  stderr = '';
  #end: Omit<TestStepEnd, 'stdout' | 'stderr'> | undefined;

  constructor(started: init.StepStarted, answers: AsyncIterator<init.SessionResponse>) {
    this.pid = started.pid;
    this.joined = started.joined;
    this.#answers = answers;
  }

  async until(text: string): Promise<void> {
    while (!this.stdout.includes(text)) await this.#next();
  }

  async end(): Promise<TestStepEnd> {
    while (this.#end === undefined) await this.#next();
    return { ...this.#end, stdout: this.stdout, stderr: this.stderr };
  }

  async #next(): Promise<void> {
    const payload = await nextAnswer(this.#answers);
    if (payload.case === 'stepOutput') {
      const { stderr, data } = payload.value;
      if (stderr) this.stderr += this.#decoders.stderr.decode(data, { stream: true });
      else this.stdout += this.#decoders.stdout.decode(data, { stream: true });
    } else if (payload.case === 'stepExited') {
      const { exit, timedOut } = payload.value;
      this.#end = { joined: this.joined, code: exit?.code ?? -1, signal: exit?.signal ?? '', timedOut };
    } else {
      throw new Error(`${String(payload.case)} in a step`);
    }
  }
}

/** What init answered in place of what was asked for. */
export class TestRefusal extends Error {
  readonly code: string;

  constructor(error: init.InitError) {
    super(error.message);
    this.code = error.code;
  }
}

async function nextAnswer(answers: AsyncIterator<init.SessionResponse>): Promise<init.SessionResponse['payload']> {
  const next = await answers.next();
  if (next.done === true) throw new Error('the session ended');
  if (next.value.error !== undefined) throw new TestRefusal(next.value.error);
  return next.value.payload;
}
