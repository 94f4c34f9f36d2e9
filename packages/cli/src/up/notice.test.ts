import type { ProcessStatus } from '@drover/supervisor';
import { expect, test } from 'vitest';
import { noticeText } from './notice.ts';

const status: ProcessStatus = {
  name: 'control plane',
  state: 'restarting',
  pid: 0,
  restarts: 1,
  lastHealthy: 1,
  lastError: 'ENOENT: admin-token',
  lastExit: undefined,
  mode: 'launch',
  exitCode: 0,
};
const killed = { code: null, signal: 'SIGKILL', at: 2 };

test.each([
  ['exited', { lastExit: killed }, undefined, 'control plane: killed by SIGKILL; starting it again'],
  ['exited', { lastExit: killed }, 'the error of the other process', 'control plane: killed by SIGKILL; starting it again'],
  ['exited', { lastExit: killed, state: 'circuit-open' }, undefined, 'control plane: killed by SIGKILL'],
  [
    'exited',
    { lastExit: { code: 6, signal: null, at: 2 } },
    'the disk is full',
    'control plane: ended with status 6 (the disk is full); starting it again',
  ],
  ['circuit-open', { lastExit: killed }, undefined, 'control plane: it ended too often; the next try is in a minute'],
  ['unhealthy', { lastError: 'timed out' }, undefined, 'control plane: does not respond (timed out)'],
] as const)('%s of %j that wrote %j: %s', (announced, changes, said, text) => {
  expect(noticeText({ ...status, ...changes }, announced, said)).toBe(text);
});
