import { once } from 'node:events';
import { connect as connectHttp2, type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import { connect, createServer, type Server } from 'node:tls';
import { create, fromBinary, toBinary, type DescMessage, type MessageInitShape, type MessageShape } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';
import { warmUpIdentity } from './identity.ts';

/** The control plane's part in a warm-up run, from modules that init uses anyway: a client library would stay in memory. */

const credentials = { ca: warmUpIdentity.caPem, cert: warmUpIdentity.certificatePem, key: warmUpIdentity.keyPem };

/** Runs a session to its end: Hello, Register, a plan of one step, and an attach to the main process. */
export async function runSession(transport: Socket, deadline: AbortSignal): Promise<void> {
  const socket = connect({ ...credentials, socket: transport, checkServerIdentity: () => undefined, ALPNProtocols: ['h2'] });
  const connection = connectHttp2('https://init', { createConnection: () => socket });
  const broken = Promise.withResolvers<never>();
  const abort = (): void => broken.reject(deadline.reason as Error);
  deadline.addEventListener('abort', abort, { once: true });
  connection.once('error', broken.reject);
  connection.once('close', () => broken.reject(new Error('the connection ended early')));
  try {
    await Promise.race([Promise.all([plan(connection), attach(connection)]), broken.promise]);
    connection.close();
    await once(connection, 'close');
  } finally {
    connection.destroy();
  }
}

async function plan(connection: ClientHttp2Session): Promise<void> {
  const { session } = init.InitService.method;
  const call = new Call(connection, '/drover.init.v1.InitService/Session', session.input, session.output);
  const payloads = [
    { case: 'hello', value: {} },
    { case: 'registerRequired', value: {} },
    { case: 'agentReady', value: {} },
  ] as const;
  for (const [id, payload] of payloads.entries()) {
    call.send({ id: BigInt(id + 1), payload });
    const answer = await call.next();
    if (answer === undefined || answer.error !== undefined) throw new Error(`${payload.case}: ${answer?.error?.message ?? 'no answer'}`);
  }
  // The end of the main process ends the call.
  while ((await call.next()) !== undefined);
}

async function attach(connection: ClientHttp2Session): Promise<void> {
  const { exec } = init.InitService.method;
  const call = new Call(connection, '/drover.init.v1.InitService/Exec', exec.input, exec.output);
  call.send({ payload: { case: 'attach', value: { execId: 'main', replay: true } } });
  const got: unknown[] = [];
  for (let answer = await call.next(); answer !== undefined; answer = await call.next()) got.push(answer.payload.case);
  if (!got.includes('output') || got.at(-1) !== 'exit') throw new Error(`the call returned ${got.join(', ')}`);
}

/** A gRPC call: each message follows a zero byte and four bytes of its length (gRPC over HTTP/2, "Length-Prefixed-Message"). */
class Call<I extends DescMessage, O extends DescMessage> {
  readonly #stream: ClientHttp2Stream;
  readonly #input: I;
  readonly #output: O;
  readonly #parts: AsyncIterator<Buffer>;
  #received: Buffer = Buffer.alloc(0);

  constructor(connection: ClientHttp2Session, path: string, input: I, output: O) {
    this.#stream = connection.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc+proto', te: 'trailers' });
    this.#input = input;
    this.#output = output;
    this.#parts = (this.#stream as AsyncIterable<Buffer>)[Symbol.asyncIterator]();
  }

  send(message: MessageInitShape<I>): void {
    const bytes = toBinary(this.#input, create(this.#input, message));
    const head = Buffer.alloc(5);
    head.writeUInt32BE(bytes.length, 1);
    this.#stream.write(Buffer.concat([head, bytes]));
  }

  /** The next response; undefined at the end of the call, which is then ended from this side too: init would wait `lingerMs` for that. */
  async next(): Promise<MessageShape<O> | undefined> {
    const length = (): number => (this.#received.length < 5 ? 5 : 5 + this.#received.readUInt32BE(1));
    while (this.#received.length < length()) {
      const part = await this.#parts.next();
      if (part.done === true) {
        this.#stream.end();
        return undefined;
      }
      this.#received = Buffer.concat([this.#received, part.value]);
    }
    const end = length();
    const message = fromBinary(this.#output, this.#received.subarray(5, end));
    this.#received = this.#received.subarray(end);
    return message;
  }
}

/** The control plane's sandbox-facing listener, for init's one request. It does not listen yet. */
export function listenForRegister(): Server {
  return createServer(
    { ...credentials, minVersion: 'TLSv1.3', requestCert: true, rejectUnauthorized: true, ALPNProtocols: ['http/1.1'] },
    (socket) => {
      socket.on('error', () => undefined);
      let request = '';
      socket.on('data', (data: Buffer) => {
        request += data.toString('latin1');
        if (request.endsWith('}')) socket.end('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}');
      });
    },
  );
}
