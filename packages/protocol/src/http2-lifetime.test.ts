import { execFile } from 'node:child_process';
import { connect, createServer, type Http2Session } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { nativePart } from './http2-lifetime.ts';
import { fields, flag, frame, frameType, preface } from './testing/frames.ts';

const run = promisify(execFile);
const victim = join(import.meta.dirname, 'testing', 'http2-victim.ts');
const { headers, continuation, settings } = frameType;

const response = frame(headers, flag.endHeaders, 1, Buffer.from([0x88]));
const field = fields(['a', 'b']);
/** Frames after a complete response or request. */
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

type Side = 'client' | 'server';

/** Rejects if the process does not survive sessions that receive these bytes. @param attacks the bytes before a write, and during it */
async function survives(side: Side, attacks: readonly (readonly [first: Buffer, then: Buffer])[]): Promise<void> {
  const sessions = attacks.map(([first, then]) => `${first.length}:${Buffer.concat([first, then]).toString('base64')}`);
  await run(process.execPath, ['--expose-gc', '--disable-warning=ExperimentalWarning', victim, side, ...sessions]);
}

const greeting = frame(settings, 0, 0);
const request = frame(headers, flag.endHeaders, 1, Buffer.from([0x83, 0x84, 0x86, 0x41, 1, 0x61]));
const beginning: Readonly<Record<Side, Buffer>> = {
  client: Buffer.concat([greeting, response]),
  server: Buffer.concat([preface, greeting, request]),
};

describe('a process survives the end of an HTTP/2 session while a stream holds header fields', () => {
  test.concurrent.each(Object.entries(rejected))('of a client: %s', async (_name, attack) => {
    await survives('client', [[beginning.client, attack]]);
  });
  test.concurrent.each(Object.entries(rejected))('of a server: %s', async (_name, attack) => {
    await survives('server', [[beginning.server, attack]]);
  });
  test('of a client: a first header block that never ends', async () => {
    await survives('client', [[greeting, frame(headers, 0, 1, field)]]);
  });
});

/** Mostly well-formed frames in any order, on existing and other streams, with complete and partial header blocks. */
const anyFrame = fc.oneof(
  fc
    .record({
      type: fc.oneof({ weight: 9, arbitrary: fc.constantFrom(...Object.values(frameType)) }, { weight: 1, arbitrary: fc.nat(255) }),
      flags: fc.oneof(fc.constantFrom(0, 1, 4, 5, 0x25), fc.nat(255)),
      stream: fc.oneof(fc.constantFrom(0, 1, 1, 1, 2, 3, 5), fc.nat(0x7fffffff)),
      payload: fc.oneof(
        fc.constantFrom(
          Buffer.alloc(0),
          field,
          Buffer.from([0x88]),
          Buffer.concat([field, Buffer.from([0x88])]),
          Buffer.alloc(8),
          Buffer.alloc(4, 1),
        ),
        fc.uint8Array({ maxLength: 64 }),
      ),
    })
    .map(({ type, flags, stream, payload }) => frame(type, flags, stream, payload)),
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 32 }).map((bytes) => Buffer.from(bytes)) },
);
const sequence = fc.array(anyFrame, { minLength: 1, maxLength: 12 }).map((frames) => Buffer.concat(frames));

test.concurrent.each(['client', 'server'] as const)('a process lives through any sequence of frames: %s', async (side) => {
  const sequences = fc.array(sequence, { minLength: 60, maxLength: 60, size: 'max' });
  await fc.assert(
    fc.asyncProperty(
      sequences,
      async (attacks) =>
        await survives(
          side,
          attacks.map((attack) => [beginning[side], attack] as const),
        ),
    ),
    { numRuns: 5, endOnFailure: true },
  );
});

test('this release of Node.js has the symbol for the native part of a session', async () => {
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
