import { once } from 'node:events';
import { connect, createServer, type ClientHttp2Session, type Http2Server, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { makeIterable } from './http2-client.ts';

let server: Http2Server;
let client: ClientHttp2Session;
let answer: (stream: ServerHttp2Stream) => void;

beforeEach(async () => {
  server = createServer();
  server.on('stream', (stream) => {
    stream.on('error', () => undefined);
    answer(stream as ServerHttp2Stream);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  client = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
afterEach(async () => {
  client.destroy();
  await new Promise((resolve) => server.close(resolve));
});

async function read(stream: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

describe('a response over HTTP/2', () => {
  test('that has arrived completely before the first read is read completely', async () => {
    answer = (stream) => {
      stream.respond({ ':status': 200 });
      stream.end('whole');
    };
    const stream = client.request({ ':path': '/' });
    makeIterable(stream);
    await once(stream, 'response');
    // The peer has ended the stream, which therefore reports that it is closed.
    while (!stream.closed) await new Promise((resolve) => setImmediate(resolve));
    expect(await read(stream)).toBe('whole');
  });

  test('larger than the buffers arrives completely while it is read', async () => {
    const text = 'x'.repeat(3_000_000);
    answer = (stream) => {
      stream.respond({ ':status': 200 });
      stream.end(text);
    };
    const stream = client.request({ ':path': '/' });
    makeIterable(stream);
    expect(await read(stream)).toBe(text);
  });

  test('whose connection breaks before its end is an error, not an end', async () => {
    answer = (stream) => {
      stream.respond({ ':status': 200 });
      stream.write('half');
      setImmediate(() => stream.session?.destroy());
    };
    const stream = client.request({ ':path': '/' });
    makeIterable(stream);
    stream.on('error', () => undefined);
    await expect(read(stream)).rejects.toThrow();
  });

  test('that is not read does no harm when it breaks', async () => {
    answer = (stream) => stream.close(2);
    const stream = client.request({ ':path': '/' });
    makeIterable(stream);
    stream.on('error', () => undefined);
    await new Promise((resolve) => stream.once('close', resolve));
  });
});
