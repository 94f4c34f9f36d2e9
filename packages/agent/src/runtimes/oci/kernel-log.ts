import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { errnoOf } from '@drover/foundation';
import { maxKernelLogRecords } from '../../limits.ts';

/** One record with its prefix, as text: CONSOLE_EXT_LOG_MAX until Linux 6.3, PRINTK_MESSAGE_MAX (2048) since. A shorter read fails. */
const recordBytes = 8_192;

/** The messages of the kernel's log, oldest first; none where this process cannot read it. Source of the format: Documentation/ABI/testing/dev-kmsg. */
export async function readKernelLog(): Promise<readonly string[]> {
  const messages: string[] = [];
  try {
    await using file = await open('/dev/kmsg', constants.O_RDONLY | constants.O_NONBLOCK);
    const buffer = Buffer.alloc(recordBytes);
    for (let reads = 0; reads < maxKernelLogRecords; reads++) {
      try {
        // Each read returns one record.
        const { bytesRead } = await file.read(buffer, 0, buffer.length, null);
        messages.push(buffer.toString('utf8', 0, bytesRead).replace(/^[^;]*;/, ''));
      } catch (error) {
        // EPIPE: records were overwritten meanwhile; the next read returns the oldest that is left. EAGAIN: the end.
        if (errnoOf(error) !== 'EPIPE') return messages;
      }
    }
  } catch {
    // A container without the device, or without the privilege: kills then have no names.
  }
  return messages;
}

/**
 * The names of the processes that the kernel killed for want of memory in a cgroup and below it, oldest first.
 * @param cgroup its name, unique on this host
 */
export function victimsIn(messages: readonly string[], cgroup: string): readonly string[] {
  return messages.flatMap((message) => {
    // Linux, mm/oom_kill.c, dump_oom_summary().
    const [, path = '', name = ''] = /^oom-kill:.*?,task_memcg=([^,]*),task=(.*),pid=\d+,uid=\d+$/m.exec(message) ?? [];
    return path.split('/').includes(cgroup) ? [name] : [];
  });
}
