import { once } from 'node:events';
import { duplexPair, type Duplex } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import { createClient, createRouterTransport } from '@connectrpc/connect';
import { FakeClock } from '@drover/foundation';
import { init } from '@drover/protocol';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PacedStream, paceMessages, TokenBucket } from './pace.ts';

describe('a token bucket', () => {
  it('never exceeds its burst and its rate, and delays no longer than the debt', () => {
    const step = fc.record({ count: fc.integer({ min: 1, max: 50 }), idleMs: fc.integer({ min: 0, max: 5_000 }) });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100 }), fc.integer({ min: 1, max: 100 }), fc.array(step), (perSecond, burst, steps) => {
        let now = 0;
        const bucket = new TokenBucket(perSecond, burst, { now: () => now });
        let taken = 0;
        for (const { count, idleMs } of steps) {
          now += idleMs;
          const debtMs = bucket.take(count);
          taken += count;
          now += debtMs;
          // After the debt is paid, the sender is within its rate.
          expect(taken).toBeLessThanOrEqual(burst + (now * perSecond) / 1000 + 1e-6);
          expect(debtMs).toBeLessThanOrEqual(Math.ceil((count * 1000) / perSecond));
        }
      }),
    );
  });

  it('treats a clock that is set back as stopped', () => {
    let now = 1_000;
    const bucket = new TokenBucket(10, 1, { now: () => now });
    expect(bucket.take(1)).toBe(0);
    now = 0;
    expect(bucket.take(1)).toBe(100);
  });
});

/** Reads until the end. An iterator would destroy the stream at its end, including the direction that is still open. */
async function received(stream: Duplex): Promise<string> {
  let all = '';
  stream.on('data', (chunk: Buffer) => (all += String(chunk)));
  await once(stream, 'end');
  return all;
}

describe('a paced stream', () => {
  function pair(perSecond: number, burst: number, clock: FakeClock): { readonly paced: PacedStream; readonly far: Duplex } {
    const [near, far] = duplexPair();
    return { paced: new PacedStream(near, new TokenBucket(perSecond, burst, clock), clock), far };
  }

  it('reads the burst, then at its rate, without losing a byte', async () => {
    const clock = new FakeClock();
    const { paced, far } = pair(1_000, 10_000, clock);
    const sent = Buffer.from(Array.from({ length: 30_000 }, (_, i) => i % 251));
    let read = 0;
    paced.on('data', (chunk: Buffer) => {
      expect(chunk.equals(sent.subarray(read, read + chunk.length))).toBe(true);
      read += chunk.length;
    });
    const ended = new Promise((resolve) => paced.once('end', resolve));
    for (let at = 0; at < sent.length; at += 1_000) far.write(sent.subarray(at, at + 1_000));
    far.end();
    await clock.advance(0);
    expect(read).toBeGreaterThanOrEqual(10_000);
    // The last chunk may be read on credit.
    expect(read).toBeLessThanOrEqual(11_000);
    await clock.advance(10_000);
    expect(read).toBeLessThanOrEqual(21_000);
    await clock.advance(15_000);
    await ended;
    expect(read).toBe(sent.length);
  });

  it('ends each direction separately, and both when either end is destroyed', async () => {
    const { paced, far } = pair(1e9, 1e9, new FakeClock());
    const question = received(paced);
    far.end('question');
    expect(await question).toBe('question');
    const answer = received(far);
    paced.end('answer');
    expect(await answer).toBe('answer');

    const [near] = duplexPair();
    const broken = new PacedStream(near, new TokenBucket(1, 1, new FakeClock()), new FakeClock());
    const closed = once(broken, 'close');
    near.destroy();
    await closed;
    const [other] = duplexPair();
    const innerClosed = once(other, 'close');
    new PacedStream(other, new TokenBucket(1, 1, new FakeClock()), new FakeClock()).destroy();
    await innerClosed;
  });

  it('applies backpressure while its reader does not read', async () => {
    const { paced, far } = pair(1e9, 1e9, new FakeClock());
    let written = 0;
    while (far.write(Buffer.alloc(16_384))) written += 16_384;
    expect(written).toBeLessThan(1024 * 1024);
    expect(paced.readableLength).toBeLessThan(1024 * 1024);
  });
});

it('messages share one bucket over all calls; beyond it they arrive at its rate, and the throttling is reported once', async () => {
  const clock = new FakeClock();
  let throttled = 0;
  const transport = createRouterTransport(
    ({ service }) =>
      void service(init.InitService, {
        async *logs() {
          for (let i = 0; i < 15; i++) {
            await Promise.resolve();
            yield create(init.LogChunkSchema, { data: Buffer.from([i]) });
          }
        },
      }),
    { transport: { interceptors: [paceMessages(new TokenBucket(1, 20, clock), clock, () => throttled++)] } },
  );
  const client = createClient(init.InitService, transport);
  const read: number[] = [];
  const reading = [0, 1].map(async () => {
    for await (const { data } of client.logs({})) read.push(...data);
  });
  await clock.advance(0);
  await expect.poll(() => read.length).toBe(20);
  for (let i = 0; i < 20; i++) await clock.advance(1_000);
  await Promise.all(reading);
  expect(read).toHaveLength(30);
  expect(throttled).toBe(1);
});
