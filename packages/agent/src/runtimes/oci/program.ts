import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { clip, DroverError, errnoOf } from '@drover/foundation';
import { runtimeProgramMs } from '../../limits.ts';

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
    return (await this.#run(['--version'], undefined)).split('\n')[0] ?? '';
  }

  /** Makes and starts the container; resolves when its first process runs. Its streams are /dev/null: init keeps its own logs. */
  async run(id: string, bundle: string, pidFile: string, log: string): Promise<void> {
    await this.#run(['--root', this.#root, '--log', log, 'run', '--detach', '--bundle', bundle, '--pid-file', pidFile, id], log);
  }

  async pause(id: string): Promise<void> {
    await this.#run(['--root', this.#root, 'pause', id], undefined);
  }

  async resume(id: string): Promise<void> {
    await this.#run(['--root', this.#root, 'resume', id], undefined);
  }

  /** Kills what runs and forgets the container; none: nothing. */
  async delete(id: string): Promise<void> {
    await this.#run(['--root', this.#root, 'delete', '--force', id], undefined);
  }

  async #run(args: readonly string[], log: string | undefined): Promise<string> {
    // Never a pipe for a detaching container: it would inherit it, and outlive this process with it.
    const detaches = log !== undefined;
    const child = spawn(this.path, args, {
      stdio: detaches ? 'ignore' : ['ignore', 'pipe', 'pipe'],
      timeout: runtimeProgramMs,
      killSignal: 'SIGKILL',
    });
    let stdout = '';
    let stderr = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (stdout = clip(stdout + text, 4096)));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr = clip(stderr + text, 4096)));
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    }).catch((error: unknown) => {
      if (errnoOf(error) !== 'ENOENT') throw error;
      throw new DroverError('missing-component', `${this.path} is not there`, { hint: 'apt-get install runc', cause: error });
    });
    if (code === 0) return stdout;
    const said = detaches ? await lastMessage(log) : stderr.trim();
    const how = code === null ? `was ended after ${runtimeProgramMs} ms` : `failed with ${code}`;
    throw new DroverError(
      'runtime-failed',
      `${this.name} ${args.find((arg) => !arg.startsWith('-') && !arg.startsWith('/')) ?? ''} ${how}: ${said || 'it said nothing'}`,
    );
  }
}

async function lastMessage(log: string): Promise<string> {
  const text = await readFile(log, 'utf8').catch(() => '');
  return clip(text.trim().split('\n').at(-1) ?? '', 1000);
}
