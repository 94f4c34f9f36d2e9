import { tmpdir, totalmem } from 'node:os';
import { expect, test } from 'vitest';
import { LinuxHost } from './host.ts';

test.each([
  ['nothing', undefined, totalmem()],
  ['some', 2 ** 20, totalmem() - 2 ** 20],
  ['more than there is', totalmem() + 1, 0],
])('R-10: a host that keeps %s of its memory offers the rest', async (_, reservedMemoryBytes, offered) => {
  const reserved = reservedMemoryBytes === undefined ? {} : { reservedMemoryBytes };
  const host = new LinuxHost({ stateDirectory: tmpdir(), labels: {}, zone: '', backends: [], ...reserved });
  expect((await host.describe()).capacity.memoryBytes).toBe(offered);
});
