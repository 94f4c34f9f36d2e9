import { expect, test } from 'vitest';
import { victimsIn } from './kernel-log.ts';

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
