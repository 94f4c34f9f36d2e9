/**
 * Opens HTTP/2 sessions whose peers send bytes during a write to them, then ends each session and collects garbage.
 * Arguments: the side of the process, `client` or `server`; then for each session `FIRST:BYTES`. BYTES are base64; the first FIRST of them
 * arrive before the write, the others during it. Run with --expose-gc; exits with 0, unless the process aborts.
 */
import { connect, createServer, type ClientHttp2Session, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import '../http2-lifetime.ts';

const [, , side, ...attacks] = process.argv;
const collect = (globalThis as unknown as { readonly gc: () => void }).gc;

/** Accepts every write until `stall`, and none afterwards. */
class Connection extends Duplex {
  #stalled = false;

  stall(): void {
    this.#stalled = true;
  }

  override _read(): void {}

  override _write(_chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    if (!this.#stalled) done();
  }
}

async function attack(bytes: Buffer, first: number): Promise<void> {
  const connection = new Connection();
  let session: ClientHttp2Session | ServerHttp2Session | undefined;
  if (side === 'client') {
    session = connect('http://peer', { createConnection: () => connection });
    const stream = session.request({ ':method': 'POST', ':path': '/' });
    stream.on('error', () => undefined);
    await sleep(10);
    connection.stall();
    stream.write('under way');
  } else {
    const server = createServer().on('session', (made) => (session = made));
    server.on('stream', (stream: ServerHttp2Stream) => {
      stream.on('error', () => undefined);
      stream.respond();
      setTimeout(() => {
        connection.stall();
        stream.write('under way');
      }, 10);
    });
    server.emit('connection', connection);
  }
  session?.on('error', () => undefined);
  connection.push(bytes.subarray(0, first));
  await sleep(30);
  connection.push(bytes.subarray(first));
  await sleep(10);
  session?.destroy();
  connection.destroy();
}

for (let round = 0; round < 3; round++) {
  await Promise.all(
    attacks.map(async (text) => {
      const [first = '0', bytes = ''] = text.split(':');
      await attack(Buffer.from(bytes, 'base64'), Number(first));
    }),
  );
  for (let times = 0; times < 3; times++) {
    collect();
    await sleep(5);
  }
}
process.exit(0);
