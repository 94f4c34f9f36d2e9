import { execFileSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  chmodSync,
  chownSync,
} from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';
import { fromConnectError } from '@drover/protocol/rpc';
import { pack, type Header } from 'tar-stream';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { createTestAuthority, startInit, type TestAuthority, type TestClient, type TestInit } from '../testing/index.ts';

let test: TestAuthority;
let box: TestInit;
let client: TestClient;
let directory: string;

beforeAll(async () => {
  test = await createTestAuthority();
  box = await startInit(test);
  client = await box.client();
});
afterAll(async () => {
  await box.close();
  await test.close();
});
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'drover-files-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

async function* copyInRequests(
  path: string,
  tar: Uint8Array,
  target: MessageInitShape<typeof init.CopyInTargetSchema> = { keepOwners: true },
): AsyncGenerator<init.CopyInRequest> {
  const value = create(init.CopyInTargetSchema, { path: Buffer.from(path), ...target });
  yield create(init.CopyInRequestSchema, { payload: { case: 'target', value } });
  for (let at = 0; at < tar.length; at += 60_000) {
    yield create(init.CopyInRequestSchema, { payload: { case: 'tar', value: tar.subarray(at, at + 60_000) } });
  }
}

async function copyOut(path: string): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const { tar } of client.init.copyOut({ path: Buffer.from(path) })) chunks.push(tar);
  return Buffer.concat(chunks);
}

async function archive(...entries: readonly (readonly [Partial<Header> & { readonly name: string }, string?])[]): Promise<Buffer> {
  const tar = pack();
  for (const [header, body] of entries) tar.entry(header, body ?? '');
  tar.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of tar as unknown as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function codeOf(promise: Promise<unknown>): Promise<string | null> {
  return await promise.then(
    () => null,
    (error: unknown) => fromConnectError(error).code,
  );
}

describe('I-39: copy', () => {
  it('out and in again, as GNU tar reads and writes it', async () => {
    const from = join(directory, 'from');
    mkdirSync(join(from, 'sub/empty'), { recursive: true });
    writeFileSync(join(from, 'large'), Buffer.alloc(5_000_000, 'abc'));
    writeFileSync(join(from, 'sub/script'), '#!/bin/sh\n', { mode: 0o750 });
    chownSync(join(from, 'sub/script'), 1234, 2345);
    symlinkSync('../large', join(from, 'sub/link'));
    writeFileSync(join(from, 'x'.repeat(200)), 'long name');
    chmodSync(join(from, 'sub/empty'), 0o700);

    const tar = await copyOut(from);
    execFileSync('tar', ['-xp', '--numeric-owner', '-C', directory, '--one-top-level=gnu'], { input: tar });
    execFileSync('diff', ['-r', '--no-dereference', from, join(directory, 'gnu/from')]);
    const gnu = execFileSync('tar', ['-c', '--numeric-owner', '-C', join(directory, 'gnu'), 'from'], { maxBuffer: 100_000_000 });
    const answer = await client.init.copyIn(copyInRequests(join(directory, 'back'), gnu));
    execFileSync('diff', ['-r', '--no-dereference', from, join(directory, 'back/from')]);
    expect(answer).toMatchObject({ entries: 7n, bytes: BigInt(5_000_000 + 10 + 9) });
    expect(lstatSync(join(directory, 'back/from/sub/script'))).toMatchObject({ uid: 1234, gid: 2345 });
    expect(lstatSync(join(directory, 'back/from/sub/script')).mode & 0o7777).toBe(0o750);
    expect(lstatSync(join(directory, 'back/from/sub/empty')).mode & 0o7777).toBe(0o700);
    expect(readlinkSync(join(directory, 'back/from/sub/link'))).toBe('../large');
    expect(Math.round(lstatSync(join(directory, 'back/from/large')).mtimeMs / 1000)).toBe(
      Math.floor(lstatSync(join(from, 'large')).mtimeMs / 1000),
    );
  });

  it('a copy in whose caller goes away leaves no half file', async () => {
    const target = join(directory, 'in');
    const tar = await archive([{ name: 'file' }, 'x'.repeat(500_000)]);
    const away = new AbortController();
    const begins = async function* (): AsyncGenerator<init.CopyInRequest> {
      yield* copyInRequests(target, tar.subarray(0, 240_000));
      await expect
        .poll(() => existsSync(join(target, 'file')) && lstatSync(join(target, 'file')).size, { timeout: 10_000 })
        .toBeGreaterThan(0);
      away.abort();
    };
    await expect(client.init.copyIn(begins(), { signal: away.signal })).rejects.toThrow();
    await expect.poll(() => existsSync(join(target, 'file')), { timeout: 10_000 }).toBe(false);
  });

  it('a path that is not there is path-not-found', async () => {
    expect(await codeOf(copyOut(join(directory, 'nothing')))).toBe('path-not-found');
  });

  it('refuses an entry that climbs out', async () => {
    const tar = await archive([{ name: '../out' }, 'x']);
    expect(await codeOf(client.init.copyIn(copyInRequests(join(directory, 'in'), tar)))).toBe('unsafe-archive');
  });

  it('refuses an entry below a link that leads outside, in the archive or on the disk', async () => {
    mkdirSync(join(directory, 'in'));
    mkdirSync(join(directory, 'outside'));
    const tar = await archive([{ name: 'link', type: 'symlink', linkname: join(directory, 'outside') }], [{ name: 'link/file' }, 'x']);
    expect(await codeOf(client.init.copyIn(copyInRequests(join(directory, 'in'), tar)))).toBe('unsafe-archive');
    expect(() => lstatSync(join(directory, 'outside/file'))).toThrow('ENOENT');
  });

  it('replaces a link instead of writing through it', async () => {
    mkdirSync(join(directory, 'in'));
    writeFileSync(join(directory, 'victim'), 'untouched');
    symlinkSync(join(directory, 'victim'), join(directory, 'in/file'));
    await client.init.copyIn(copyInRequests(join(directory, 'in'), await archive([{ name: 'file' }, 'new'])));
    expect(readFileSync(join(directory, 'victim'), 'utf8')).toBe('untouched');
    expect(readFileSync(join(directory, 'in/file'), 'utf8')).toBe('new');
  });

  it('names the devices that it leaves out, and refuses bytes that are no archive', async () => {
    const device = await archive([{ name: 'null', type: 'character-device', devmajor: 1, devminor: 3 }], [{ name: 'file' }, 'x']);
    const { leftOut, leftOutCount } = await client.init.copyIn(copyInRequests(join(directory, 'in'), device));
    expect(leftOut.map(({ path, reason }) => `${Buffer.from(path).toString()} ${reason}`)).toEqual(['null is a device']);
    expect(leftOutCount).toBe(1n);
    expect(readFileSync(join(directory, 'in/file'), 'utf8')).toBe('x');
    expect(await codeOf(client.init.copyIn(copyInRequests(join(directory, 'in'), Buffer.alloc(2048, 'garbage'))))).toBe('invalid-argument');
  });

  it('places the topmost entry as cp(1) does', async () => {
    const tar = await archive([{ name: 'tool' }, 'new']);
    const place = async (path: string): Promise<void> =>
      void (await client.init.copyIn(copyInRequests(join(directory, path), tar, { placeAsCp: true })));
    mkdirSync(join(directory, 'usr/bin'), { recursive: true });
    symlinkSync('usr/bin', join(directory, 'bin'));
    writeFileSync(join(directory, 'usr/real'), 'old');
    symlinkSync('usr/real', join(directory, 'link'));
    symlinkSync('nothing', join(directory, 'dangling'));
    for (const path of ['bin', 'link', 'dangling', 'other', 'made/', 'deep/er/name']) await place(path);
    expect(readlinkSync(join(directory, 'bin'))).toBe('usr/bin');
    expect(readlinkSync(join(directory, 'link'))).toBe('usr/real');
    for (const path of ['usr/bin/tool', 'usr/real', 'dangling', 'other', 'made/tool', 'deep/er/name'])
      expect(`${path}: ${readFileSync(join(directory, path), 'utf8')}`).toBe(`${path}: new`);
    expect(await codeOf(place('other/'))).toBe('failed-precondition');
  });

  it("becomes the sandbox's user's, or another's that is asked for", async () => {
    const tar = await archive([{ name: 'file', uid: 1234, gid: 2345 }, 'x']);
    const owned = async (target: MessageInitShape<typeof init.CopyInTargetSchema>): Promise<string> => {
      await client.init.copyIn(copyInRequests(directory, tar, target));
      const { uid, gid } = lstatSync(join(directory, 'file'));
      return `${uid}:${gid}`;
    };
    expect(await owned({})).toBe('0:0');
    expect(await owned({ chown: '77:88' })).toBe('77:88');
    expect(await owned({ keepOwners: true })).toBe('1234:2345');
    expect(await codeOf(owned({ keepOwners: true, chown: '77' }))).toBe('invalid-argument');
    expect(await codeOf(owned({ chown: 'nobody-knows' }))).toBe('invalid-argument');
  });
});

describe('I-39: forward', () => {
  it('carries bytes both ways and half-closes', async () => {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      const chunks: Buffer[] = [];
      socket.on('data', (data: Buffer) => chunks.push(data));
      // Answers only after the end of the other direction: it must have been passed on.
      socket.on('end', () => socket.end(Buffer.concat(chunks)));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const sent = Buffer.alloc(3_000_000, '0123456789');
    const received: Uint8Array[] = [];
    for await (const { payload } of client.init.forward(frames(port, sent))) if (payload.case === 'data') received.push(payload.value);
    expect(Buffer.concat(received).equals(sent)).toBe(true);
    server.close();
  });

  it('the program may end its side first, and goes on receiving', async () => {
    const got = Promise.withResolvers<string>();
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      let text = '';
      socket.on('data', (data: Buffer) => (text += data.toString()));
      socket.on('end', () => got.resolve(text));
      socket.end('that was all');
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const programEnded = Promise.withResolvers<void>();
    async function* requests(): AsyncGenerator<init.ForwardFrame> {
      yield create(init.ForwardFrameSchema, { payload: { case: 'port', value: port } });
      await programEnded.promise;
      yield create(init.ForwardFrameSchema, { payload: { case: 'data', value: Buffer.from('said after its end') } });
      yield create(init.ForwardFrameSchema, { payload: { case: 'eof', value: true } });
    }
    const frames: (string | boolean)[] = [];
    for await (const { payload } of client.init.forward(requests())) {
      if (payload.case === 'data') frames.push(Buffer.from(payload.value).toString());
      if (payload.case === 'eof') {
        frames.push(payload.value);
        programEnded.resolve();
      }
    }
    expect(frames).toEqual(['that was all', true]);
    expect(await got.promise).toBe('said after its end');
    server.close();
  });

  it('a connection that is reset after the end of one side fails the call, and nothing else', async () => {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => undefined);
      socket.on('data', () => socket.resetAndDestroy());
      socket.end('that was all');
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const programEnded = Promise.withResolvers<void>();
    let over = false;
    async function* requests(): AsyncGenerator<init.ForwardFrame> {
      yield create(init.ForwardFrameSchema, { payload: { case: 'port', value: port } });
      await programEnded.promise;
      // A socket that has been read to its end learns of the reset when it is written to.
      while (!over) yield create(init.ForwardFrameSchema, { payload: { case: 'data', value: Buffer.from('x') } });
    }
    const call = (async () => {
      for await (const { payload } of client.init.forward(requests())) if (payload.case === 'eof') programEnded.resolve();
    })();
    expect(await codeOf(call)).toBe('unavailable');
    over = true;
    server.close();
  });

  it('a port without a listener is refused, and not as a broken session', async () => {
    const call = (async () => {
      for await (const _ of client.init.forward(frames(1, Buffer.from('x')))) {
        // Nothing comes.
      }
    })();
    expect(await codeOf(call)).toBe('failed-precondition');
  });

  async function* frames(port: number, data: Buffer): AsyncGenerator<init.ForwardFrame> {
    yield create(init.ForwardFrameSchema, { payload: { case: 'port', value: port } });
    for (let at = 0; at < data.length; at += 64_000) {
      yield create(init.ForwardFrameSchema, { payload: { case: 'data', value: data.subarray(at, at + 64_000) } });
    }
  }
});
