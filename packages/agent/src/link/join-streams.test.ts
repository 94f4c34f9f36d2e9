import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { duplexPair, type Duplex } from 'node:stream';
import { FakeClock } from '@drover/foundation';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { tunnelLingerMs } from '../limits.ts';
import { joinStreams } from './join-streams.ts';

const sockets: Socket[] = [];

/** Both ends of a TCP connection. */
async function connection(): Promise<{ readonly near: Socket; readonly far: Socket }> {
  const server = createServer({ allowHalfOpen: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const far = connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true });
  const [near] = (await once(server, 'connection')) as [Socket];
  server.close();
  sockets.push(near, far);
  return { near, far };
}

/** What comes out until the end, and how it ended. */
async function whole(stream: Duplex): Promise<{ readonly text: string; readonly end: string }> {
  let text = '';
  stream.on('data', (data: Buffer) => (text += data.toString()));
  const end = await new Promise<string>((resolve) => {
    stream.once('end', () => resolve('end'));
    stream.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
  });
  return { text, end };
}

let clock: FakeClock;
beforeEach(() => {
  clock = new FakeClock();
});
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

describe('two streams that are joined (L-30)', () => {
  it('end each direction by itself', async () => {
    const [one, two] = [await connection(), await connection()];
    joinStreams(one.near, two.near, clock, () => undefined);
    const [atOne, atTwo] = [whole(one.far), whole(two.far)];
    one.far.end('question');
    expect(await atTwo).toEqual({ text: 'question', end: 'end' });
    two.far.end('answer');
    expect(await atOne).toEqual({ text: 'answer', end: 'end' });
    await expect.poll(() => one.near.closed && two.near.closed, { timeout: 10_000 }).toBe(true);
  });

  it('show a break as one, not as an end', async () => {
    const [one, two] = [await connection(), await connection()];
    joinStreams(one.near, two.near, clock, () => undefined);
    const atTwo = whole(two.far);
    one.far.write('half');
    await once(two.far, 'data');
    one.far.resetAndDestroy();
    expect(await atTwo).toEqual({ text: 'half', end: 'ECONNRESET' });
  });

  it('carry all that was said by one that said its end and went away', async () => {
    const one = await connection();
    const [near, far] = duplexPair();
    joinStreams(one.near, near, clock, () => undefined);
    one.far.end('all of it');
    await once(one.near, 'end');
    one.near.destroy();
    await once(one.near, 'close');
    expect(near.destroyed).toBe(false);
    expect(await whole(far)).toEqual({ text: 'all of it', end: 'end' });
    await expect.poll(() => near.destroyed, { timeout: 10_000 }).toBe(true);
    expect(clock.sleeping).toBe(0);
  });

  it.each([
    ['went away', (near: Socket) => void near.destroy(), () => undefined],
    ['closed as it should', () => undefined, (far: Duplex) => void far.end()],
  ])('are both gone in the end, when one that said its end %s, and the other does not take it', async (_, leave, end) => {
    const one = await connection();
    const [near, far] = duplexPair();
    joinStreams(one.near, near, clock, () => undefined);
    one.far.resume().end('nobody reads this');
    await once(one.near, 'end');
    end(far);
    leave(one.near);
    if (!one.near.closed) await once(one.near, 'close');
    await clock.advance(tunnelLingerMs - 1);
    expect(near.destroyed).toBe(false);
    await clock.advance(1);
    expect(near.destroyed).toBe(true);
  });
});
