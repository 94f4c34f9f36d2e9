/**
 * A hostile init that floods its peer or stays silent. It runs as a program in a sandbox's network namespace.
 * Arguments: port, certificate, key, sandbox id, mode. It serves Session as init does until the flood, and `exec` in each mode.
 */
import { readFileSync } from 'node:fs';
import { createSecureServer, type ServerHttp2Stream } from 'node:http2';
import { create, fromBinary, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';

const [port = '', certificate = '', key = '', sandboxId = '', mode = ''] = process.argv.slice(2);

function framed(message: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

function response(value: MessageInitShape<typeof init.SessionResponseSchema>): Buffer {
  return framed(toBinary(init.SessionResponseSchema, create(init.SessionResponseSchema, value)));
}

const output = framed(
  toBinary(
    init.ExecResponseSchema,
    create(init.ExecResponseSchema, { payload: { case: 'output', value: { data: Buffer.alloc(60_000, 65) } } }),
  ),
);

/** Writes as fast as the peer reads. */
function flood(stream: ServerHttp2Stream, chunk: Buffer): void {
  const pump = (): void => {
    if (stream.destroyed) return;
    if (stream.write(chunk)) setImmediate(pump);
    else stream.once('drain', pump);
  };
  pump();
}

const floods: Readonly<Record<string, () => Buffer>> = {
  drift: () =>
    Buffer.concat(Array.from({ length: 200 }, (_, i) => response({ id: BigInt(1_000_000 + i), payload: { case: 'pong', value: {} } }))),
  // A field that no schema has: with a short value here, with a megabyte below.
  driftnotice: () => Buffer.concat(Array.from({ length: 200 }, () => framed(Buffer.from('ea040178', 'hex')))),
  bigmsg: () => framed(Buffer.concat([Buffer.from('ea04c0843d', 'hex'), Buffer.alloc(1_000_000)])),
};

function session(stream: ServerHttp2Stream): void {
  let received = Buffer.alloc(0);
  stream.on('data', (data: Buffer) => {
    received = Buffer.concat([received, data]);
    while (received.length >= 5 && received.length >= 5 + received.readUInt32BE(1)) {
      const end = 5 + received.readUInt32BE(1);
      const { id, payload } = fromBinary(init.SessionRequestSchema, received.subarray(5, end));
      received = received.subarray(end);
      if (payload.case !== 'hello') continue;
      stream.write(response({ id, payload: { case: 'helloAck', value: { sandboxId, initVersion: 'hostile', bootId: 'hostile' } } }));
      const chunk = floods[mode]?.();
      if (chunk !== undefined) flood(stream, chunk);
    }
  });
}

const server = createSecureServer({
  cert: readFileSync(certificate),
  key: readFileSync(key),
  requestCert: true,
  rejectUnauthorized: false,
});
server.on('session', (connection) => connection.on('error', () => undefined));
server.on('stream', (stream: ServerHttp2Stream, headers) => {
  stream.on('error', () => undefined);
  if (mode === 'mute') {
    stream.resume();
    return;
  }
  stream.respond({ ':status': 200, 'content-type': 'application/grpc+proto' });
  if (headers[':path']?.endsWith('/Session') === true) session(stream);
  else {
    stream.resume();
    if (mode === 'execflood') flood(stream, output);
  }
});
server.listen(Number(port), '0.0.0.0', () => console.log('listening'));
