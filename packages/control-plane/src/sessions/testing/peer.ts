import { once } from 'node:events';
import { createSecureServer, type Http2SecureServer, type ServerHttp2Session } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { BoundedQueue, type SandboxId } from '@drover/foundation';
import { init } from '@drover/protocol';

type Answer = MessageInitShape<typeof init.SessionResponseSchema>;
type AnswerPayload = NonNullable<Answer['payload']>;

/** How the peer handles a request. It may send any responses in any order; the default is that of a correct init. */
export type Behaviour = (request: init.SessionRequest, peer: PeerSession) => void | Promise<void>;

/** One session stream, at init's end. */
export class PeerSession {
  readonly requests: init.SessionRequest[] = [];
  readonly #answers = new BoundedQueue<Answer>({ name: 'answers', capacity: 1_000 });

  answer(id: bigint, payload: AnswerPayload): void {
    this.#answers.push({ id, payload });
  }

  refuse(id: bigint, code: string, message: string): void {
    this.#answers.push({ id, error: { code, message } });
  }

  /** A response with an unknown payload. */
  drift(id: bigint): void {
    this.#answers.push({ id });
  }

  mainExited(code: number): void {
    this.#answers.push({ id: 0n, payload: { case: 'mainExited', value: { exit: { code } } } });
    this.end();
  }

  end(): void {
    this.#answers.end();
  }

  answers(): AsyncIterable<Answer> {
    return this.#answers;
  }
}

export interface PeerOptions {
  readonly id: SandboxId;
  readonly credentials: { readonly certificatePem: string; readonly keyPem: string };
  readonly behave?: Partial<Record<NonNullable<init.SessionRequest['payload']['case']>, Behaviour>>;
  /** The fields of HelloAck besides the id. */
  readonly hello?: MessageInitShape<typeof init.HelloAckSchema>;
}

/** An init written by the test: real TLS, real gRPC, and any certificate. */
export class Peer implements AsyncDisposable {
  readonly sessions: PeerSession[] = [];
  readonly #server: Http2SecureServer;
  readonly #connections = new Set<ServerHttp2Session>();
  behave: NonNullable<PeerOptions['behave']>;
  hello: NonNullable<PeerOptions['hello']>;
  readonly id: SandboxId;

  constructor({ id, credentials, behave = {}, hello = {} }: PeerOptions) {
    this.id = id;
    this.behave = behave;
    this.hello = hello;
    this.#server = createSecureServer({ cert: credentials.certificatePem, key: credentials.keyPem, minVersion: 'TLSv1.3' });
    this.#server.on(
      'request',
      connectNodeAdapter({
        routes: (router) =>
          router.service(init.InitService, {
            session: (requests) => this.#serve(requests),
            async *logs() {
              yield await Promise.resolve({ data: Buffer.from('a line') });
            },
          }),
      }),
    );
    this.#server.on('session', (session) => {
      this.#connections.add(session);
      session.once('close', () => this.#connections.delete(session));
    });
    // Some tests make the client reset its connections.
    this.#server.on('sessionError', () => undefined);
    this.#server.on('tlsClientError', () => undefined);
  }

  async listen(): Promise<number> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return (this.#server.address() as AddressInfo).port;
  }

  /** Presents this certificate from the next handshake on. */
  show({ certificatePem, keyPem }: PeerOptions['credentials']): void {
    this.#server.setSecureContext({ cert: certificatePem, key: keyPem, minVersion: 'TLSv1.3' });
  }

  /** Requests of every session so far, by kind. */
  get asked(): readonly string[] {
    return this.sessions.flatMap(({ requests }) => requests.map(({ payload }) => payload.case ?? 'unknown'));
  }

  /** The steps that were requested in the session, in order. */
  steps(session = this.sessions.length - 1): readonly string[] {
    return (this.sessions[session]?.requests ?? []).flatMap(({ payload }) =>
      payload.case === 'runStep' ? [payload.value.name] : payload.case === 'agentReady' ? ['agent-ready'] : [],
    );
  }

  get connections(): number {
    return this.#connections.size;
  }

  /** Cuts every connection, as a lost network does. */
  cut(): void {
    for (const connection of this.#connections) connection.destroy();
  }

  async *#serve(requests: AsyncIterable<init.SessionRequest>): AsyncGenerator<init.SessionResponse> {
    const session = new PeerSession();
    this.sessions.push(session);
    void (async () => {
      try {
        for await (const request of requests) {
          session.requests.push(request);
          const { payload } = request;
          const behave = (payload.case === undefined ? undefined : this.behave[payload.case]) ?? this.good;
          await behave(request, session);
        }
      } catch {
        // The stream was cut.
      }
      session.end();
    })();
    for await (const answer of session.answers()) yield create(init.SessionResponseSchema, answer);
  }

  /** Responds as a correct init does. */
  readonly good = ({ id, payload }: init.SessionRequest, session: PeerSession): void => {
    switch (payload.case) {
      case 'hello':
        return session.answer(id, { case: 'helloAck', value: { sandboxId: this.id, bootId: 'boot', initVersion: 'test', ...this.hello } });
      case 'agentReady':
        return session.answer(id, { case: 'agentReadyDone', value: {} });
      case 'runStep':
        session.answer(id, { case: 'stepStarted', value: { pid: 7 } });
        return session.answer(id, { case: 'stepExited', value: { exit: { code: 0 } } });
      case 'registerRequired':
        return session.answer(id, { case: 'registerDone', value: {} });
      case 'installCertificate':
        return session.answer(id, { case: 'certificateInstalled', value: {} });
      default:
        return session.refuse(id, 'unimplemented', 'this init does not know the request');
    }
  };

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    this.#server.close();
    await Promise.resolve();
  }
}
