import { PassThrough, Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { describe, expect, test } from 'vitest';
import { create } from '@bufbuild/protobuf';
import { api } from '@drover/protocol';
import { messageJson, Output } from './output.ts';

/** A pipe whose reader takes what is written when it is told to. */
class SlowReader extends Writable {
  readonly taken: string[] = [];
  #waiting: (() => void)[] = [];

  constructor() {
    super({ highWaterMark: 1 });
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.#waiting.push(() => {
      this.taken.push(chunk.toString());
      done();
    });
  }

  read(): void {
    for (const take of this.#waiting.splice(0)) take();
  }
}

const output = (stdout: Writable): Output => new Output({ json: false, stdout, stderr: stdout, interactive: false });

test('a note and its hint are two lines on stderr, also with -o json', async () => {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  new Output({ json: true, stdout, stderr, interactive: false }).note('other machines cannot join', 'start it with --listen');
  stderr.end();
  expect([stdout.read(), await text(stderr)]).toEqual([null, 'drover: other machines cannot join\n  hint: start it with --listen\n']);
});

describe('bytes', () => {
  test('wait while their reader is slow', async () => {
    const reader = new SlowReader();
    let written = false;
    const writing = output(reader)
      .bytes(Buffer.from('abc'))
      .then(() => (written = true));
    await Promise.resolve();
    expect(written).toBe(false);
    reader.read();
    await writing;
    expect(reader.taken).toEqual(['abc']);
    expect([reader.listenerCount('drain'), reader.listenerCount('close')]).toEqual([0, 0]);
  });

  test('are let go when the reader leaves in the middle, which never drains', async () => {
    const reader = new SlowReader();
    const writing = output(reader).bytes(Buffer.from('abc'));
    reader.destroy();
    await writing;
    await output(reader).bytes(Buffer.from('more'));
  });

  test('tell what broke their stream', async () => {
    const reader = new SlowReader();
    const writing = output(reader).bytes(Buffer.from('abc'));
    reader.destroy(new Error('no space left'));
    await expect(writing).rejects.toThrow('no space left');
  });
});

test('R-3: a verdict is the word that people use', () => {
  const check = create(api.TrustCheckSchema, { check: 'cn', verdict: api.TrustCheck_Verdict.FAIL });
  expect(messageJson(api.TrustCheckSchema, check)).toMatchObject({ check: 'cn', verdict: 'fail' });
});

test('64-bit integers are numbers, also in messages within messages; times stay text', () => {
  const host = create(api.HostSchema, {
    capacity: { memoryBytes: 8_589_934_592n, cpuMillis: 4_000 },
    lastSeenAt: { seconds: 1n, nanos: 0 },
    labels: { zone: '12' },
  });
  expect(messageJson(api.HostSchema, host)).toMatchObject({
    capacity: { memoryBytes: 8_589_934_592, cpuMillis: 4_000 },
    lastSeenAt: '1970-01-01T00:00:01Z',
    labels: { zone: '12' },
  });
  expect(messageJson(api.EventSchema, create(api.EventSchema, { id: 7n }))).toMatchObject({ id: 7 });
});

test('nothing that came from a sandbox controls the terminal, in text or in JSON; lines and columns stay', () => {
  const written: string[] = [];
  const sink = new Writable({ write: (chunk: Buffer, _encoding, done) => (written.push(chunk.toString()), done()) });
  const hostile = 'a\u001b]0;x\u0007b\u009b31mc';
  const out = output(sink);
  out.line(`${hostile}\nd\te`);
  out.note(`${hostile}\r`);
  out.record({ name: hostile });
  out.object({ name: hostile });
  expect(written).toEqual([
    'a ]0;x b 31mc\nd\te\n',
    'drover: a ]0;x b 31mc \n',
    '{"name":"a\\u001b]0;x\\u0007b\\u009b31mc"}\n',
    '{\n  "name": "a\\u001b]0;x\\u0007b\\u009b31mc"\n}\n',
  ]);
});
