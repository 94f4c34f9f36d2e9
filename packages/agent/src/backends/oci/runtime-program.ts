import { readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { clip, DroverError, errnoOf } from '@drover/foundation';
import { killedProgramMs, launch, runProgram, type Finished, type Launched } from '@drover/linux';
import { pauseAttempts, pauseRetryMs, runtimeProgramMs } from '../../limits.ts';

/** An OCI runtime program, driven by its command line, which runc, crun, youki and runsc share. */
export class RuntimeProgram {
  readonly path: string;
  readonly name: string;
  readonly #root: string;

  /** @param root holds the program's state */
  constructor(path: string, root: string) {
    this.path = path;
    this.name = basename(path);
    this.#root = root;
  }

  /** First line of --version. @throws {DroverError} missing-component */
  async version(): Promise<string> {
    return (await this.#run(['--version'])).split('\n')[0] ?? '';
  }

  /**
   * Makes and starts the container; resolves when its first process runs. Its streams are /dev/null: init keeps its own logs.
   * @returns the gate, which init waits at with descriptor 3: it is open once disposed of, or when this process ends
   */
  async run(id: string, bundle: string, pidFile: string, log: string): Promise<Disposable> {
    const args = ['--root', this.#root, '--log', log, 'run', '--detach', '--preserve-fds', '1'];
    const child = await this.#start(
      async () => await launch(this.path, [...args, '--bundle', bundle, '--pid-file', pidFile, id], { channel: true }),
    );
    const { channel: gate } = child;
    // Init has ended, which its waiters see.
    gate?.on('error', () => undefined);
    // In a file system that hangs not even SIGKILL ends it: `destroy` searches for it.
    const stuck = Promise.withResolvers<null>();
    const timers = [
      setTimeout(() => child.kill(), runtimeProgramMs),
      setTimeout(() => stuck.resolve(null), runtimeProgramMs + killedProgramMs),
    ];
    try {
      const code = await Promise.race([child.ended, stuck.promise]);
      if (code !== 0) {
        const message = await lastMessage(log);
        throw refusedMount(message) ?? this.#failure('run', code, message);
      }
      return { [Symbol.dispose]: () => void gate?.destroy() };
    } catch (error) {
      gate?.destroy();
      throw error;
    } finally {
      for (const timer of timers) clearTimeout(timer);
    }
  }

  /** Retries: on cgroup v1, runc gives up after a short while when the processes are busy or the machine is slow, and thaws. */
  async pause(id: string): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#run(['--root', this.#root, 'pause', id]);
        return;
      } catch (error) {
        if (attempt >= pauseAttempts || !(error instanceof Error) || !error.message.includes('unable to freeze')) throw error;
        await delay(pauseRetryMs * attempt);
      }
    }
  }

  async resume(id: string): Promise<void> {
    await this.#run(['--root', this.#root, 'resume', id]);
  }

  /** Removes the program's state of a container whose processes have ended. Absent: nothing. */
  async forget(id: string): Promise<void> {
    // The whole state of these two; starting them to remove a directory takes longer.
    if (this.name === 'runc' || this.name === 'crun') await rm(join(this.#root, id), { recursive: true, force: true });
    else await this.#run(['--root', this.#root, 'delete', '--force', id]);
  }

  async #run(args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.#start(async () => await runProgram(this.path, args, { timeoutMs: runtimeProgramMs }));
    if (code === 0) return stdout;
    throw this.#failure(args.find((arg) => !arg.startsWith('-') && !arg.startsWith('/')) ?? '', code, clip(stderr.trim(), 4096));
  }

  /** @throws {DroverError} missing-component */
  async #start<T extends Launched | Finished>(start: () => Promise<T>): Promise<T> {
    try {
      return await start();
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
      throw new DroverError('missing-component', `${this.path} is not there`, { hint: 'apt-get install runc', cause: error });
    }
  }

  #failure(command: string, code: number | null, said: string): DroverError {
    const how = code === null ? `was ended after ${runtimeProgramMs} ms` : `failed with ${code}`;
    return new DroverError('runtime-failed', `${this.name} ${command} ${how}: ${said || 'it said nothing'}`, {
      hint: 'see `drover doctor`',
    });
  }
}

async function lastMessage(log: string): Promise<string> {
  const text = await readFile(log, 'utf8').catch(() => '');
  return clip(messageOf(text.trim().split('\n').at(-1) ?? ''), 1000);
}

/** The message in a line of runc's log: `time="…" level=error msg="…"`, quoted as in Go. Other lines are returned as they are. */
export function messageOf(line: string): string {
  const quoted = /\bmsg=("(?:[^"\\]|\\.)*")/.exec(line)?.[1];
  if (quoted === undefined) return line;
  try {
    return (JSON.parse(quoted) as string).replace(/\s+/g, ' ');
  } catch {
    // One of Go's escapes that JSON has not.
    return line;
  }
}

/** What runc logs of a mount that it cannot make, and the reason in words. The first that matches counts. */
const mountRefusals = [
  [/cannot be mounted because it is (?:inside \/proc|not of type proc)$/, 'it leads into /proc'],
  [/^open o_path .*: not a directory$/, 'a part of that path is a file in the sandbox'],
  [/: not a directory$/, 'of the two, one is a directory and the other a file'],
] as const;

/** The error for a mount that the image has no place for, from what runc logs of it; undefined for any other message. */
export function refusedMount(message: string): DroverError | undefined {
  const [, target, why = ''] = /error mounting "[^"]*" to rootfs at "([^"]*)": (.*)$/.exec(message) ?? [];
  const [, reason] = mountRefusals.find(([pattern]) => pattern.test(why)) ?? [];
  if (target === undefined || reason === undefined) return undefined;
  return new DroverError('failed-precondition', `nothing can be mounted on ${target}: ${reason}`, {
    hint: 'name another path in the sandbox with --volume: a directory for a directory or a volume, a file for a file',
  });
}
