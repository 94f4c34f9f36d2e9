import { execFile } from 'node:child_process';
import { connect, createServer, type Http2Session } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { nativePart } from './http2-lifetime.ts';
import { fields, flag, frame, frameType, preface } from './testing/frames.ts';

const run = promisify(execFile);
const victim = join(import.meta.dirname, 'testing', 'http2-victim.ts');
const { headers, continuation, settings } = frameType;

const response = frame(headers, flag.endHeaders, 1, Buffer.from([0x88]));
const field = fields(['a', 'b']);
/** After a response or a request that was complete. */
const rejected: Readonly<Record<string, Buffer>> = {
  'trailers that never end': frame(headers, 0, 1, field),
  'trailers that more CONTINUATION frames follow than the parser takes': Buffer.concat([
    frame(headers, 0, 1, field),
    ...Array.from({ length: 20 }, () => frame(continuation, 0, 1, field)),
  ]),
  'trailers that do not end the stream': frame(headers, flag.endHeaders, 1, field),
  'trailers with a pseudo-header field': frame(headers, flag.endHeaders | flag.endStream, 1, Buffer.concat([field, Buffer.from([0x88])])),
  'trailers that cannot be decoded': frame(headers, flag.endHeaders | flag.endStream, 1, Buffer.concat([field, Buffer.alloc(5, 0xff)])),
  'trailers that a PING interrupts': Buffer.concat([frame(headers, 0, 1, field), frame(frameType.ping, 0, 0, Buffer.alloc(8))]),
};

/** The exit of a process whose session got these bytes. A signal is an abort. */
async function survives(side: 'client' | 'server', first: Buffer, then: Buffer): Promise<void> {
  const bytes = Buffer.concat([first, then]).toString('base64');
  await run(process.execPath, ['--expose-gc', '--disable-warning=ExperimentalWarning', victim, side, bytes, String(first.length)]);
}

describe('a process whose HTTP/2 session ends while a stream holds header fields lives on', () => {
  const greeting = frame(settings, 0, 0);
  const request = frame(headers, flag.endHeaders, 1, Buffer.from([0x83, 0x84, 0x86, 0x41, 1, 0x61]));
  test.concurrent.each(Object.entries(rejected))('of a client: %s', async (_name, attack) => {
    await survives('client', Buffer.concat([greeting, response]), attack);
  });
  test.concurrent.each(Object.entries(rejected))('of a server: %s', async (_name, attack) => {
    await survives('server', Buffer.concat([preface, greeting, request]), attack);
  });
  test('of a client: a first header block that never ends', async () => {
    await survives('client', greeting, frame(headers, 0, 1, field));
  });
});

test('the native part of a session is found under the name that this Node.js has for it', async () => {
  const sessions: Http2Session[] = [];
  const server = createServer().on('session', (session) => sessions.push(session));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const client = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  await new Promise((resolve) => client.once('remoteSettings', resolve));
  for (const session of [client, ...sessions]) expect(nativePart(session)?.constructor.name).toBe('Http2Session');
  expect(sessions).toHaveLength(1);
  client.destroy();
  await new Promise((resolve) => server.close(resolve));
});
