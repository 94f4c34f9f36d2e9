import { createSecureServer, type Http2SecureServer } from 'node:http2';
import { duplexPair, type Duplex } from 'node:stream';
import { text } from 'node:stream/consumers';
import { connect } from 'node:tls';
import { create } from '@bufbuild/protobuf';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { init } from '@drover/protocol';

export interface FleetInitOptions {
  readonly sandboxId: string;
  readonly name: string;
  readonly certificatePem: string;
  readonly keyPem: string;
  readonly caPem: string;
  readonly bootstrapToken: string;
  /** Takes a connection to the control plane's sandbox-facing listener, as the host does. */
  readonly carry: (connection: Duplex) => void;
}

/**
 * The session's far end without a sandbox: real TLS with a real certificate, the session's protocol, Register through the host. It runs
 * no commands. For fleets that no machine could hold; what is measured is the other side.
 */
export class FleetInit {
  readonly #options: FleetInitOptions;
  readonly #server: Http2SecureServer;
  #ready = false;

  constructor(options: FleetInitOptions) {
    this.#options = options;
    const { certificatePem: cert, keyPem: key, caPem: ca } = options;
    this.#server = createSecureServer({ cert, key, ca, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' });
    const session = (requests: AsyncIterable<init.SessionRequest>): AsyncGenerator<init.SessionResponse> => this.#session(requests);
    this.#server.on('request', connectNodeAdapter({ routes: (router) => void router.service(init.InitService, { session }) }));
    // A connection that breaks is dialled again; here there is nothing to do.
    for (const event of ['sessionError', 'tlsClientError', 'error']) this.#server.on(event, () => undefined);
  }

  dial(): Duplex {
    const [near, far] = duplexPair();
    for (const end of [near, far]) end.on('error', () => undefined);
    this.#server.emit('connection', far);
    return near;
  }

  async *#session(requests: AsyncIterable<init.SessionRequest>): AsyncGenerator<init.SessionResponse> {
    for await (const { id, payload } of requests) {
      const answer = await this.#answer(payload);
      yield create(init.SessionResponseSchema, { id, ...answer });
    }
  }

  async #answer(
    payload: init.SessionRequest['payload'],
  ): Promise<Pick<init.SessionResponse, 'payload'> | { readonly error: init.InitError }> {
    switch (payload.case) {
      case 'hello': {
        const phase = this.#ready ? init.MainState_Phase.RUNNING : init.MainState_Phase.NOT_STARTED;
        const value = create(init.HelloAckSchema, {
          sandboxId: this.#options.sandboxId,
          bootId: this.#options.sandboxId,
          main: { phase },
          stepsDone: this.#ready ? ['agent-ready'] : [],
        });
        return { payload: { case: 'helloAck', value } };
      }
      case 'registerRequired':
        await this.#register(payload.value.bootstrapToken || this.#options.bootstrapToken);
        return { payload: { case: 'registerDone', value: create(init.RegisterDoneSchema) } };
      case 'agentReady': {
        const value = create(init.AgentReadyDoneSchema, { main: { phase: init.MainState_Phase.RUNNING }, alreadyStarted: this.#ready });
        this.#ready = true;
        return { payload: { case: 'agentReadyDone', value } };
      }
      case 'ping':
        return { payload: { case: 'pong', value: create(init.PongSchema) } };
      default:
        return { error: create(init.InitErrorSchema, { code: 'unimplemented', message: 'a fleet init runs nothing' }) };
    }
  }

  /** Connect over HTTP/1.1 (connectrpc.com/docs/protocol): one POST, and the connection ends with the answer. */
  async #register(token: string): Promise<void> {
    const { carry, certificatePem: cert, keyPem: key, caPem: ca, name } = this.#options;
    const [near, far] = duplexPair();
    carry(far);
    const socket = connect({ socket: near, cert, key, ca, minVersion: 'TLSv1.3', checkServerIdentity: () => undefined });
    const body = JSON.stringify({ name });
    socket.write(
      `POST /drover.control.v1.ControlService/Register HTTP/1.1\r\nhost: control-plane\r\ncontent-type: application/json\r\n` +
        `connect-protocol-version: 1\r\nauthorization: Bearer ${token}\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
    );
    const answer = await text(socket);
    if (!answer.startsWith('HTTP/1.1 200')) throw new Error(`Register was answered with ${answer.slice(0, 200)}`);
  }
}
