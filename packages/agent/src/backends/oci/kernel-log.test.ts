import { appendFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { maxKeptOomKills } from '../../limits.ts';
import { KernelLog, victimsIn } from './kernel-log.ts';

const kill = (cgroup: string, task: string): string =>
  `oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=${cgroup},mems_allowed=0,oom_memcg=/drover/${cgroup},task_memcg=/drover/${cgroup},task=${task},pid=4711,uid=1000000`;

test('the kernel names what it killed in a cgroup, and below it', () => {
  const messages = [
    'eth0: link up',
    kill('sb-a', 'python3'),
    kill('sb-b', 'node'),
    kill('sb-a/inner', 'stress'),
    'Memory cgroup out of memory: Killed process 4711 (python3) total-vm:1kB',
  ];
  expect(victimsIn(messages, 'sb-a')).toEqual(['python3', 'stress']);
});

test('a process cannot pretend to be of another cgroup by its name', () => {
  expect(victimsIn([kill('sb-b', 'x,task_memcg=/drover/sb-a,task=y')], 'sb-a')).toEqual([]);
});

test('each record of the log is read once, and the kills of all sandboxes are kept, bounded', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'drover-kernel-log-'));
  onTestFinished(async () => await rm(directory, { recursive: true }));
  const path = join(directory, 'kmsg');
  const log = new KernelLog(path);
  onTestFinished(async () => await log.close());
  expect(await log.victims('sb-a')).toEqual([]);
  // A read of the device returns one record; of this file, as much as the largest record.
  const records = (...messages: readonly string[]): Buffer =>
    Buffer.concat(
      messages.map((message) => {
        const record = Buffer.alloc(8_192);
        record.write(`4,1,1,-;${message}\n`);
        return record;
      }),
    );
  await writeFile(path, records('eth0: link up', kill('sb-a', 'first'), kill('sb-b', 'other')));
  expect(await log.victims('sb-a')).toEqual(['first']);
  await writeFile(path, records('eth0: link up', kill('sb-a', 'changed'), kill('sb-b', 'changed')));
  await appendFile(path, records(kill('sb-a', 'second')));
  expect(await log.victims('sb-a')).toEqual(['first', 'second']);
  expect(await log.victims('sb-b')).toEqual(['other']);
  await appendFile(path, records(...Array.from({ length: maxKeptOomKills }, () => kill('sb-b', 'many'))));
  expect(await log.victims('sb-b')).toHaveLength(maxKeptOomKills);
  expect(await log.victims('sb-a')).toEqual([]);
});
