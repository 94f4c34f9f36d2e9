import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect as connectHttp2, createSecureServer, createServer as createHttp2Server, type ServerHttp2Stream } from 'node:http2';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls, createServer as createTlsServer, type TLSSocket } from 'node:tls';
import { openCertificateAuthority } from '@drover/pki';
import { flag, frame, frameType, preface } from '@drover/protocol/testing';
import type { Attack } from './attacks.ts';
import type { Answer, Listening, Question } from './victim.ts';

/** Time that an attack holds its connection when the process leaves it open. Milliseconds. */
const holdMs = 25;
/** Bounds of a flood: bytes and time. */
const floodBytes = 8 * 1024 * 1024;
const floodMs = 1_000;
const answerMs = 15_000;
/** Allowed growth of a process's resident set during attacks, measured after garbage collections. Bytes. */
export const growthBytes = 64 * 1024 * 1024;

/** Concurrent connections of one attacker, below the limit of every listener for one peer. */
const connectionsAtATime = 6;

/** A process under attack. */
export class Victim implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #directory: string;
  #listening: Listening | undefined;
  #stderr = '';
  readonly #waiters: ((answer: Answer) => void)[] = [];

  private constructor(name: string, directory: string) {
    this.#directory = directory;
    this.#child = fork(join(import.meta.dirname, 'victim.ts'), [name, directory], {
      execArgv: ['--expose-gc', '--conditions=development', '--disable-warning=ExperimentalWarning'],
      stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#stderr = (this.#stderr + text).slice(-10_000)));
    this.#child.on('message', (answer: Answer) => this.#waiters.shift()?.(answer));
  }

  static async start(name: string): Promise<Victim> {
    const victim = new Victim(name, await mkdtemp(join(tmpdir(), 'drover-http2-')));
    const answer = await victim.#next();
    if (!('listening' in answer)) throw new Error(`${name} did not start`);
    victim.#listening = answer.listening;
    return victim;
  }

  get listening(): Listening {
    return this.#listening ?? { at: {} };
  }

  get directory(): string {
    return this.#directory;
  }

  /** @throws with the process's standard error when it has ended */
  mustLive(): void {
    const { exitCode, signalCode } = this.#child;
    if (exitCode !== null || signalCode !== null) throw new Error(`the process ended (${signalCode ?? exitCode}): ${this.#stderr}`);
  }

  /** Returns the resident set after a garbage collection, in bytes. */
  async memory(): Promise<number> {
    const answer = await this.#ask({ ask: 'memory' });
    return 'rss' in answer ? answer.rss : Number.NaN;
  }

  /** Makes one connection and one call of the client, and returns its outcome. Outcomes of concurrent calls may arrive in any order. */
  async dial(at: number | string, withinMs: number): Promise<string> {
    const answer = await this.#ask({ ask: 'dial', at, withinMs });
    return 'dialled' in answer ? answer.dialled : '';
  }

  async #ask(question: Question): Promise<Answer> {
    this.mustLive();
    this.#child.send(question);
    return await this.#next();
  }

  async #next(): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    this.#waiters.push(resolve);
    const dead = (): void => {
      // The rest of its standard error is read first.
      setImmediate(() => {
        try {
          this.mustLive();
        } catch (error) {
          reject(error);
        }
      });
    };
    const timer = setTimeout(() => reject(new Error(`the process did not respond: ${this.#stderr}`)), answerMs);
    this.#child.once('close', dead);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#child.removeListener('close', dead);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGKILL');
      await once(this.#child, 'close');
    }
    await rm(this.#directory, { recursive: true, force: true });
  }
}

/** Opens a connection to one of the victim's listeners, with TLS where it has it. */
async function open({ at, caPem, credentials }: Listening, name: string): Promise<Socket | TLSSocket> {
  const where = at[name];
  if (typeof where === 'string') {
    const socket = connect(where);
    await once(socket, 'connect');
    return socket;
  }
  const socket = connectTls({
    port: where ?? 0,
    host: '127.0.0.1',
    ca: caPem,
    ...credentials?.[name],
    ALPNProtocols: ['h2'],
    checkServerIdentity: () => undefined,
  });
  await once(socket, 'secureConnect');
  return socket;
}

const request = frame(
  frameType.headers,
  flag.endHeaders,
  1,
  // :method POST, :scheme https, :path /, :authority a (RFC 7541, appendix A)
  Buffer.from([0x83, 0x87, 0x84, 0x41, 1, 0x61]),
);
const greeting = Buffer.concat([frame(frameType.settings, 0, 0), frame(frameType.settings, flag.ack, 0)]);

export async function attackListener(victim: Victim, name: string, attack: Attack): Promise<void> {
  const socket = await open(victim.listening, name);
  const beginning = attack.first === true ? [] : [preface, greeting, request];
  await play(socket, Buffer.concat(beginning), attack);
}

/** Makes another client's request on a separate connection. @throws when there is no response */
export async function mustServe(victim: Victim, name: string): Promise<void> {
  victim.mustLive();
  const socket = await open(victim.listening, name);
  const session = connectHttp2('https://victim', { createConnection: () => socket });
  try {
    const stream = session.request({ ':method': 'POST', ':path': '/nothing', 'content-type': 'application/grpc' });
    await once(stream, 'response', { signal: AbortSignal.timeout(answerMs) });
  } finally {
    session.destroy();
  }
}

async function play(socket: Socket, beginning: Buffer, attack: Attack): Promise<void> {
  socket.on('error', () => undefined);
  socket.resume();
  const closed = socket.closed ? Promise.resolve() : new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.write(beginning);
  if (attack.flood === true) await Promise.race([flood(socket, attack.bytes), closed]);
  else socket.write(attack.bytes);
  if (attack.end === 'fin') socket.end();
  if (attack.end === 'reset') await sleep(5);
  else await Promise.race([closed, sleep(holdMs)]);
  socket.destroy();
  await closed;
}

async function flood(socket: Socket, bytes: Buffer): Promise<void> {
  const end = Date.now() + floodMs;
  for (let sent = 0; sent < floodBytes && Date.now() < end && !socket.destroyed; sent += bytes.length) {
    if (!socket.write(bytes)) await once(socket, 'drain').catch(() => undefined);
  }
}

/** Servers that a client of the victim dials: one attacks each connection, one responds correctly. */
export class Peers implements AsyncDisposable {
  readonly attacker: number | string;
  readonly good: number | string;
  /** Number of requests to the good server. */
  served = 0;
  readonly #attacks: { readonly attack: Attack; readonly done: () => void }[] = [];
  readonly #servers: Server[] = [];

  private constructor(attacker: number | string, good: number | string) {
    this.attacker = attacker;
    this.good = good;
  }

  /** @param unix whether they listen on Unix sockets without TLS */
  static async start(directory: string, unix: boolean): Promise<Peers> {
    const paths = unix ? [join(directory, 'attacker.sock'), join(directory, 'good.sock')] : [];
    const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover.test' });
    const { certificatePem: cert, keyPem: key } = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] });
    let peers: Peers | undefined;
    const attack = (socket: Socket): void => void peers?.attack(socket);
    const attacker = unix ? createServer(attack) : createTlsServer({ cert, key, ALPNProtocols: ['h2'] }, attack);
    const good = unix ? createHttp2Server() : createSecureServer({ cert, key });
    good.on('stream', (stream: ServerHttp2Stream) => {
      if (peers !== undefined) peers.served++;
      stream.on('error', () => undefined);
      stream.respond({ ':status': 200, 'content-type': 'application/grpc+proto', 'grpc-status': '12' }, { endStream: true });
    });
    const at: (number | string)[] = [];
    for (const [number, server] of [attacker, good].entries()) {
      server.on('tlsClientError', () => undefined);
      const path = paths[number];
      await new Promise<void>((resolve) => (path === undefined ? server.listen(0, '127.0.0.1', resolve) : server.listen(path, resolve)));
      at.push(path ?? (server.address() as AddressInfo).port);
    }
    peers = new Peers(at[0] ?? 0, at[1] ?? 0);
    peers.#servers.push(attacker, good);
    return peers;
  }

  /** Assigns the attack to the next connection that sends a byte. Resolves when the attack ends. */
  async next(attack: Attack): Promise<void> {
    await new Promise<void>((done) => this.#attacks.push({ attack, done }));
  }

  /** Whether an attack ends within the hold time. */
  async isOver(attack: Promise<void>): Promise<boolean> {
    return await Promise.race([attack.then(() => true), sleep(holdMs, false)]);
  }

  async attack(socket: Socket): Promise<void> {
    socket.on('error', () => undefined);
    // A client may connect only to inspect the certificate.
    await Promise.race([once(socket, 'data'), once(socket, 'close')]).catch(() => undefined);
    // By then its request is under way, or the client has closed the connection.
    await sleep(5);
    const next = socket.destroyed ? undefined : this.#attacks.shift();
    if (next === undefined) {
      socket.destroy();
      return;
    }
    await play(socket, next.attack.first === true ? Buffer.alloc(0) : greeting, next.attack);
    next.done();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) server.close();
    await Promise.resolve();
  }
}

/** Runs the attacks with bounded concurrency. */
export async function inTurns(attacks: readonly Attack[], run: (attack: Attack) => Promise<void>): Promise<void> {
  const left = attacks.values();
  const work = async (): Promise<void> => {
    for (const attack of left) await run(attack);
  };
  await Promise.all(Array.from({ length: connectionsAtATime }, work));
}
