import { DroverError } from '@drover/foundation';
import { describe, expect, test } from 'vitest';
import { connectDrover, DroverClient } from './client.ts';
import { chunkBytes } from './limits.ts';
import { chunksOf, Handoff } from './streams.ts';

describe('a server', () => {
  test('must be an https address', () => {
    for (const server of ['', 'localhost:7443', 'http://localhost:7443', 'https://localhost/path']) {
      expect(() => new DroverClient({ server, token: 't' })).toThrow(DroverError);
    }
  });

  test('that does not listen is named, with what to do', async () => {
    // Port 1 is tcpmux: nothing here serves it.
    const client = await connectDrover({ server: 'https://127.0.0.1:1', token: 't', caPem: '' });
    await expect(client.version()).rejects.toMatchObject({
      code: 'control-plane-unreachable',
      hint: expect.stringContaining('drover up') as string,
    });
    await expect(client.sandboxes.create({ spec: { image: 'host' } })).rejects.toMatchObject({ code: 'control-plane-unreachable' });
    await expect(client.sandboxes.exec('x', { argv: ['true'] }).exit).rejects.toMatchObject({ code: 'control-plane-unreachable' });
    client.close();
  });
});

describe('input', () => {
  test('is cut to pieces that fit a message', () => {
    const sizes = [...chunksOf(new Uint8Array(2 * chunkBytes + 1))].map((chunk) => chunk.byteLength);
    expect(sizes).toEqual([chunkBytes, chunkBytes, 1]);
  });

  test('that a connection did not take goes to the next one', async () => {
    const input = new Handoff<string>(4);
    const first = new AbortController();
    const reader = input.items(first.signal);
    void input.offer('a');
    expect((await reader.next()).value).toBe('a');
    const waiting = reader.next();
    first.abort();
    expect((await waiting).done).toBe(true);
    const offered = input.offer('b');
    expect((await input.items(new AbortController().signal).next()).value).toBe('b');
    await offered;
  });

  test('is let go when nobody will read it', async () => {
    const input = new Handoff<string>(4);
    const offered = input.offer('a');
    input.close();
    await offered;
    await input.offer('b');
  });
});
