import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { LogFile } from './log-file.ts';

test('the log of up keeps the last error of a process and its hint', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-log-'));
  onTestFinished(() => rm(directory, { recursive: true }));
  const log = new LogFile(join(directory, 'drover.log'));
  const says = (msg: string, stream = 'stderr'): void => log.write(`${JSON.stringify({ level: 30, stream, msg })}\n`);
  says('ready');
  expect([log.lastError, log.lastHint]).toEqual([undefined, undefined]);
  says('drover: port 7444 is "taken"');
  says('  hint: choose another with --link-listen');
  says('stopped');
  expect([log.lastError, log.lastHint]).toEqual(['port 7444 is "taken"', 'choose another with --link-listen']);
  // The hint of the previous error does not apply.
  says('drover: something else');
  expect([log.lastError, log.lastHint]).toEqual(['something else', undefined]);
  // A result is not an error.
  says('drover: the control plane is ready on https://127.0.0.1:7443', 'stdout');
  expect(log.lastError).toBe('something else');
  log.forgetErrors();
  expect(log.lastError).toBeUndefined();
  expect((await readFile(log.path, 'utf8')).split('\n')).toHaveLength(7);
});
