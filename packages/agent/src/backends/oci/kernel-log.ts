import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { errnoOf, SerialExecutor } from '@drover/foundation';
import { maxKeptOomKills, maxKernelLogRecords } from '../../limits.ts';

/** One record with its prefix, as text: CONSOLE_EXT_LOG_MAX until Linux 6.3, PRINTK_MESSAGE_MAX (2048) since. A shorter read fails. */
const recordBytes = 8_192;

/**
 * The processes in the kernel's log that were killed for want of memory. The log stays open, and each call reads only the records since the last
 * call: a sandbox can cause any number of kills, and the whole log is many thousand reads.
 * Source of the format: Documentation/ABI/testing/dev-kmsg.
 */
export class KernelLog {
  readonly #path: string;
  readonly #serial = new SerialExecutor();
  #file: FileHandle | undefined;
  #kills: string[] = [];

  constructor(path = '/dev/kmsg') {
    this.#path = path;
  }

  /** See `victimsIn`. Empty where this process cannot read the log. */
  async victims(cgroup: string): Promise<readonly string[]> {
    return await this.#serial.run(async () => {
      await this.#readNew().catch(() => undefined);
      return victimsIn(this.#kills, cgroup);
    });
  }

  async close(): Promise<void> {
    await this.#serial.run(async () => {
      await this.#file?.close();
      this.#file = undefined;
    });
  }

  /** Rejects without the device or the privilege: kills then have no names. */
  async #readNew(): Promise<void> {
    this.#file ??= await open(this.#path, constants.O_RDONLY | constants.O_NONBLOCK);
    const buffer = Buffer.alloc(recordBytes);
    for (let reads = 0; reads < maxKernelLogRecords; reads++) {
      try {
        // Each read returns one record.
        const { bytesRead } = await this.#file.read(buffer, 0, buffer.length, null);
        if (bytesRead === 0) return;
        const message = buffer.toString('utf8', 0, bytesRead).replace(/^[^;]*;/, '');
        if (message.startsWith(oomKill)) this.#kills.push(message);
        if (this.#kills.length > maxKeptOomKills) this.#kills.shift();
      } catch (error) {
        // EPIPE: records were overwritten meanwhile; the next read returns the oldest remaining one. EAGAIN: the end.
        if (errnoOf(error) !== 'EPIPE') return;
      }
    }
  }
}

/** Linux, mm/oom_kill.c, dump_oom_summary(). */
const oomKill = 'oom-kill:';

/**
 * The names of the processes that the kernel killed for want of memory in a cgroup and below it, oldest first.
 * @param cgroup its name, unique on this host
 */
export function victimsIn(messages: readonly string[], cgroup: string): readonly string[] {
  return messages.flatMap((message) => {
    const [, path = '', name = ''] = /^oom-kill:.*?,task_memcg=([^,]*),task=(.*),pid=\d+,uid=\d+$/m.exec(message) ?? [];
    return path.split('/').includes(cgroup) ? [name] : [];
  });
}
