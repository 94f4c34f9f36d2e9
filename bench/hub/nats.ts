import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { programPath } from '../machine.ts';

/** Debian's nats-server on a port of its own; undefined when there is none. */
export class NatsServer implements AsyncDisposable {
  readonly #process: ChildProcess;
  readonly port: number;

  private constructor(child: ChildProcess, port: number) {
    this.#process = child;
    this.port = port;
  }

  static async start(parent: string): Promise<NatsServer | undefined> {
    const program = programPath('nats-server');
    if (program === undefined) return undefined;
    const directory = join(parent, 'nats');
    await mkdir(directory);
    const child = spawn(program, ['-a', '127.0.0.1', '-p', '-1', '--ports_file_dir', directory], { stdio: 'ignore' });
    for (let i = 0; i < 100 && child.exitCode === null; i++) {
      const [file] = (await readdir(directory)).filter((name) => name.endsWith('.ports'));
      const text = file === undefined ? '' : await readFile(join(directory, file), 'utf8');
      const port = /nats:\/\/127\.0\.0\.1:(\d+)/.exec(text)?.[1];
      if (port !== undefined) return new NatsServer(child, Number(port));
      await delay(50);
    }
    child.kill('SIGKILL');
    throw new Error('nats-server does not start');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#process, 'exit');
    this.#process.kill('SIGTERM');
    await ended;
  }
}
