import { lstatSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { makeNode } from './index.ts';

test('makeNode creates a device with large numbers, and reports a name that is taken', () => {
  const directory = mkdtempSync(join(tmpdir(), 'drover-files-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'device');
  makeNode(path, 'character', 300, 70_000);
  expect(lstatSync(path).isCharacterDevice()).toBe(true);
  // The encoding of st_rdev: (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12).
  expect(lstatSync(path).rdev).toBe((70_000 & 0xff) | (300 << 8) | ((70_000 & ~0xff) << 12));
  expect(() => makeNode(path, 'fifo', 0, 0)).toThrow(expect.objectContaining({ code: 'EEXIST', syscall: 'mknod' }));
});
