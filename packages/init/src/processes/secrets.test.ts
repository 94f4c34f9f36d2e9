import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { writeSecrets } from './secrets.ts';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'drover-secrets-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

const secret = { name: 'KEY', value: Buffer.from([0, 1, 255]).toString('base64') };

test("R-19: secrets are files that the main process's user alone can read", () => {
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', directory]);
  try {
    writeSecrets([secret], '1234:99', directory);
    const { mode, uid, gid } = statSync(join(directory, 'KEY'));
    expect({ mode: mode & 0o7777, uid, gid }).toEqual({ mode: 0o400, uid: 1234, gid: 99 });
    expect(readFileSync(join(directory, 'KEY'))).toEqual(Buffer.from([0, 1, 255]));
  } finally {
    execFileSync('umount', [directory]);
  }
});

test('R-19: where there is no tmpfs, none is written and the start fails', () => {
  expect(() => writeSecrets([secret], '', '/proc')).toThrow('/proc is no tmpfs');
});

test('R-19: all of them or none: where they do not fit, nothing is left of them', () => {
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8k', 'tmpfs', directory]);
  try {
    const large = { name: 'LARGE', value: Buffer.alloc(64 * 1024, 1).toString('base64') };
    expect(() => writeSecrets([secret, large], '0:0', directory)).toThrow(/cannot be put into .*: no space left on device/);
    expect(readdirSync(directory)).toEqual([]);
  } finally {
    execFileSync('umount', [directory]);
  }
});
