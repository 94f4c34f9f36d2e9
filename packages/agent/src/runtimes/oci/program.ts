import { spawn, type ChildProcess } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { basename } from 'node:path';
import { clip, DroverError, errnoOf } from '@drover/foundation';
import { runtimeProgramMs } from '../../limits.ts';
import { searchPath } from '../../search-path.ts';

/** An OCI runtime program, driven by its command line, which runc, crun, youki and runsc share. */
export class Program {
  readonly path: string;
  readonly name: string;
  readonly #root: string;

  /** @param root where the program keeps its state */
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
    // Not its standard streams: Node closes those when the program itself ends.
    const child = spawn(this.path, [...args, '--bundle', bundle, '--pid-file', pidFile, id], {
      stdio: ['ignore', 'ignore', 'ignore', 'pipe'],
      timeout: runtimeProgramMs,
      killSignal: 'SIGKILL',
      env: environment(),
    });
    const gate = child.stdio[3] as Socket;
    // Init is gone; whoever waits for it sees that.
    gate.on('error', () => undefined);
    try {
      const code = await this.#ended(child, 'exit');
      if (code !== 0) throw this.#failure('run', code, await lastMessage(log));
      return { [Symbol.dispose]: () => void gate.destroy() };
    } catch (error) {
      gate.destroy();
      throw error;
    }
  }

  async pause(id: string): Promise<void> {
    await this.#run(['--root', this.#root, 'pause', id]);
  }

  async resume(id: string): Promise<void> {
    await this.#run(['--root', this.#root, 'resume', id]);
  }

  /** Kills what runs and forgets the container; none: nothing. */
  async delete(id: string): Promise<void> {
    await this.#run(['--root', this.#root, 'delete', '--force', id]);
  }

  async #run(args: readonly string[]): Promise<string> {
    const child = spawn(this.path, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: runtimeProgramMs,
      killSignal: 'SIGKILL',
      env: environment(),
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout = clip(stdout + text, 4096)));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr = clip(stderr + text, 4096)));
    const code = await this.#ended(child, 'close');
    if (code === 0) return stdout;
    throw this.#failure(args.find((arg) => !arg.startsWith('-') && !arg.startsWith('/')) ?? '', code, stderr.trim());
  }

  /** Its exit code; null: it was killed. @throws {DroverError} missing-component */
  async #ended(child: ChildProcess, by: 'exit' | 'close'): Promise<number | null> {
    return await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once(by, resolve);
    }).catch((error: unknown) => {
      if (errnoOf(error) !== 'ENOENT') throw error;
      throw new DroverError('missing-component', `${this.path} is not there`, { hint: 'apt-get install runc', cause: error });
    });
  }

  #failure(command: string, code: number | null, said: string): DroverError {
    const how = code === null ? `was ended after ${runtimeProgramMs} ms` : `failed with ${code}`;
    return new DroverError('runtime-failed', `${this.name} ${command} ${how}: ${said || 'it said nothing'}`, {
      hint: 'see `drover doctor`',
    });
  }
}

function environment(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: searchPath() };
}

async function lastMessage(log: string): Promise<string> {
  const text = await readFile(log, 'utf8').catch(() => '');
  return clip(messageOf(text.trim().split('\n').at(-1) ?? ''), 1000);
}

/** What a line of runc's log says: `time="…" level=error msg="…"`, the message quoted as Go does. Other lines are taken as they are. */
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
