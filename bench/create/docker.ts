import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { mkdir, readFile, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { programPath } from '../machine.ts';
import { commandLine, program, type Way } from './first-byte.ts';

const run = promisify(execFile);
/** How long dockerd may take to answer, ms. Longer, and it is left out. */
const startMs = 30_000;

/** A Docker daemon of the bench's own, which touches no one's network: no bridge, no iptables. */
export class Docker implements AsyncDisposable {
  readonly #daemon: ChildProcess;
  readonly #directory: string;
  readonly #program: string;
  readonly #host: string;

  private constructor(daemon: ChildProcess, directory: string, client: string) {
    this.#daemon = daemon;
    this.#directory = directory;
    this.#program = client;
    this.#host = `unix://${directory}/docker.sock`;
  }

  /** Undefined, with the reason, when there is none here or it does not start. */
  static async start(parent: string): Promise<{ readonly docker: Docker } | { readonly absent: string }> {
    const [dockerd, client] = ['dockerd', 'docker'].map(programPath);
    if (dockerd === undefined || client === undefined) return { absent: 'Docker is not installed (apt-get install docker.io)' };
    const directory = join(parent, 'docker');
    await mkdir(directory);
    const log = openSync(join(directory, 'log'), 'w');
    const daemon = spawn(
      dockerd,
      [
        ['--data-root', join(directory, 'data'), '--exec-root', join(directory, 'exec'), '--pidfile', join(directory, 'pid')],
        ['--host', `unix://${directory}/docker.sock`, '--iptables=false', '--ip6tables=false', '--ip-masq=false', '--bridge=none'],
      ].flat(),
      { stdio: ['ignore', log, log] },
    );
    closeSync(log);
    const docker = new Docker(daemon, directory, client);
    const end = Date.now() + startMs;
    while (Date.now() < end && daemon.exitCode === null) {
      try {
        await docker.#docker(['version']);
        return { docker };
      } catch {
        // Not yet.
        await delay(200);
      }
    }
    const said = (await readFile(join(directory, 'log'), 'utf8')).trim().split('\n').at(-1) ?? '';
    await docker[Symbol.asyncDispose]();
    return { absent: `dockerd does not start here: ${said.slice(0, 200)}` };
  }

  /** `docker run --network none` of the same root, from an image of it. */
  async way(rootfs: string): Promise<Way> {
    await run('sh', ['-c', 'tar -C "$1" -c . | "$2" -H "$3" import - bench', 'sh', rootfs, this.#program, this.#host]);
    return commandLine(
      'docker run',
      () => [this.#program, '-H', this.#host, 'run', '--rm', '--network', 'none', 'bench', ...program],
      process.env,
      async () => undefined,
    );
  }

  /** Containers that do nothing; gives what takes them away. */
  async idle(count: number): Promise<AsyncDisposable> {
    const ids = await Promise.all(
      Array.from(
        { length: count },
        async () => await this.#docker(['run', '-d', '--network', 'none', 'bench', '/bin/busybox', 'sleep', '1000']),
      ),
    );
    return { [Symbol.asyncDispose]: async () => void (await this.#docker(['rm', '-f', ...ids.map((id) => id.trim())])) };
  }

  /** The daemon, its containerd, and their shims. */
  async pids(): Promise<{ readonly daemons: readonly number[]; readonly shims: readonly number[] }> {
    const daemons: number[] = [];
    const shims: number[] = [];
    for (const name of await readdir('/proc')) {
      if (!/^\d+$/.test(name)) continue;
      const words = (await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '')).split('\0');
      if (!words.some((word) => word.includes(this.#directory))) continue;
      if (words[0]?.includes('containerd-shim') === true) shims.push(Number(name));
      else if (/(?:^|\/)(?:dockerd|containerd)$/.test(words[0] ?? '')) daemons.push(Number(name));
    }
    return { daemons, shims };
  }

  async #docker(args: readonly string[]): Promise<string> {
    return (await run(this.#program, ['-H', this.#host, ...args])).stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#daemon.exitCode === null && this.#daemon.signalCode === null) {
      const closed = once(this.#daemon, 'exit');
      this.#daemon.kill('SIGTERM');
      const timer = setTimeout(() => this.#daemon.kill('SIGKILL'), 15_000);
      await closed;
      clearTimeout(timer);
    }
    const { daemons, shims } = await this.pids();
    for (const pid of [...daemons, ...shims]) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It ended by itself in between.
      }
    }
    const mounts = (await readFile('/proc/mounts', 'utf8')).split('\n').map((line) => line.split(' ')[1] ?? '');
    for (const path of mounts.filter((path) => path.startsWith(`${this.#directory}/`)).toReversed()) {
      await run('umount', ['-l', path]).catch(() => undefined);
    }
    await rm(this.#directory, { recursive: true, force: true });
  }
}
