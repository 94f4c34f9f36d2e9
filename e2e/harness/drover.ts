import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { DroverError } from '@drover/foundation';
import { api } from '@drover/protocol';
import { connectDrover, type CreateOptions, type DroverClient, type SandboxStateName } from '@drover/sdk';
import { messageJson } from 'drover';
import { execa } from 'execa';
import { commandLine, endProcesses, processesUnder } from './processes.ts';

/** The checkout under test: this one, or the one named by DROVER_TEST_CHECKOUT (CONTRIBUTING.md). */
export const repository = process.env['DROVER_TEST_CHECKOUT'] ?? join(import.meta.dirname, '..', '..');
export const launcher = join(repository, 'drover');
/** Whether the checkout under test is another one. The modules that tests import then differ from its command line. */
export const testsOtherCheckout = process.env['DROVER_TEST_CHECKOUT'] !== undefined;

export interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly input?: string | Uint8Array;
  readonly timeoutMs?: number;
  readonly env?: Readonly<Record<string, string>>;
}

export interface ExecOptions {
  readonly input?: string;
  readonly user?: string;
}

/** The specification of a sandbox, apart from its command. */
export type Spec = Omit<CreateOptions['spec'], '$typeName' | 'command'>;

/** Time limit of a request to the control plane, including the operation that it waits for. Milliseconds. */
const requestMs = 60_000;
/** The states that `stop` waits for. */
const endedStates: readonly SandboxStateName[] = ['stopped', 'failed', 'deleting', 'deleted'];

type Up = ReturnType<typeof startUp>;

function startUp([file, ...args]: readonly [string, ...string[]], env: Readonly<Record<string, string>>) {
  return execa(file, args, { env, reject: false, stdin: 'ignore', cleanup: false });
}

/** Returns a command that runs a program with other contents of /etc/hosts in a separate mount namespace. */
const withHosts = (hosts: string) => ['unshare', '--mount', 'sh', '-ec', 'mount --bind "$0" /etc/hosts; exec "$@"', hosts] as const;

/** One `drover up` with its own data directory, ports and CLI context. */
export class TestDrover implements AsyncDisposable {
  /** Holds every file of this instance. */
  readonly directory: string;
  readonly data: string;
  readonly #hosts: string | undefined;
  #up: Up | undefined;
  #output = '';
  #client: DroverClient | undefined;

  private constructor(directory: string, hosts: string | undefined) {
    this.directory = directory;
    this.#hosts = hosts;
    this.data = join(directory, 'data');
  }

  /**
   * Starts `drover up ARGS…` and waits until it prints that it is ready.
   * @param prepare fills its directory first, for instance with volumes for sandboxes, and returns additional arguments
   * @param hosts a file that replaces its /etc/hosts
   */
  static async start(
    args: readonly string[] = [],
    prepare?: (directory: string) => Promise<readonly string[]>,
    hosts?: string,
  ): Promise<TestDrover> {
    const drover = new TestDrover(await mkdtemp(join(tmpdir(), 'drover-e2e-')), hosts);
    // The image store and the roots of sandboxes lie below. Their owners are not root and must be able to enter.
    await execa('chmod', ['711', drover.directory]);
    try {
      await drover.up([...args, ...((await prepare?.(drover.directory)) ?? [])]);
      return drover;
    } catch (error) {
      await drover[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The output of `up` so far. */
  get output(): string {
    return this.#output;
  }

  /** Starts or restarts `up` on the same data directory. */
  async up(args: readonly string[] = []): Promise<void> {
    this.#output = '';
    // Its address may differ from the previous one.
    this.#closeClient();
    // Standbys would take CPU time from other tests, so a test that needs them asks for them in `args`.
    const command = [launcher, 'up', '--data', this.data, '--listen', '127.0.0.1:0', '--standbys', '0', ...args] as const;
    const up = startUp(this.#hosts === undefined ? command : [...withHosts(this.#hosts), ...command], this.environment);
    this.#up = up;
    for (const stream of [up.stdout, up.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (this.#output += text));
    let ended: number | undefined;
    void up.then(({ exitCode }) => (ended = exitCode ?? -1));
    await eventually(
      'drover up is ready',
      async () => {
        if (ended !== undefined) throw new Error(`drover up ended with ${ended}: ${this.#output}\n${await this.log()}`);
        return /ready on https:/.test(this.#output);
      },
      120_000,
    );
  }

  /** Sends Ctrl-C's signal to `up` and returns its exit code. */
  async interrupt(): Promise<number> {
    this.#up?.kill('SIGINT');
    return (await this.#up)?.exitCode ?? -1;
  }

  get upPid(): number {
    return this.#up?.pid ?? 0;
  }

  /** Returns the pid of a child of `up`. */
  async pidOf(part: 'serve' | 'agent' | 'gateway'): Promise<number> {
    return await eventually(`${part} runs`, async () => {
      for (const pid of await processesUnder(this.data)) {
        const argv = await commandLine(pid);
        if (argv.some((word) => /\/main\.[jt]s$/.test(word)) && argv.includes(part)) return pid;
      }
      return undefined;
    });
  }

  get environment(): Record<string, string> {
    return { XDG_CONFIG_HOME: join(this.directory, 'config'), NO_COLOR: '1' };
  }

  /** Runs `drover ARGS…` to its end. Never rejects for its exit code. */
  async run(args: readonly string[], options: RunOptions = {}): Promise<Finished> {
    const result = await execa(launcher, args, {
      env: { ...this.environment, ...options.env },
      reject: false,
      timeout: options.timeoutMs ?? 60_000,
      stripFinalNewline: false,
      ...(options.input === undefined ? { stdin: 'ignore' as const } : { input: options.input }),
    });
    if (result.timedOut)
      throw new Error(`drover ${args.join(' ')} took longer than ${options.timeoutMs ?? 60_000} ms; ${result.stdout}${result.stderr}`);
    return { code: result.exitCode ?? -1, stdout: result.stdout, stderr: result.stderr };
  }

  /** Runs `drover ARGS… -o json` and returns the parsed output. Rejects when the command fails. */
  async json<T = Record<string, unknown>>(args: readonly string[]): Promise<T> {
    // Words after `--`, and the command of a sandbox, are not options of Drover.
    const words = args.includes('--') ? [...args.slice(0, 1), '-o', 'json', ...args.slice(1)] : [...args, '-o', 'json'];
    const { code, stdout, stderr } = await this.run(words);
    if (code !== 0) throw new Error(`drover ${args.join(' ')} ended with ${code}: ${stderr}`);
    return JSON.parse(stdout) as T;
  }

  // Preparation, cleanup and polling use the SDK, because starting the CLI costs many times as much as the request.

  /** Returns the output of `drover sandbox get NAME -o json`. */
  async sandbox<T = Record<string, unknown>>(name: string): Promise<T> {
    return await this.#ask(async (client) => messageJson(api.SandboxSchema, await client.sandboxes.get(name)));
  }

  /** Returns the output of `drover sandbox ls -o json`. */
  async sandboxes<T = Record<string, unknown>>(): Promise<T[]> {
    return await this.#ask(async (client) => (await client.sandboxes.list()).map((sandbox) => messageJson(api.SandboxSchema, sandbox)));
  }

  /** Returns the output of `drover host get NAME -o json`. */
  async host<T = Record<string, unknown>>(name: string): Promise<T> {
    return await this.#ask(async (client) => messageJson(api.HostSchema, await client.hosts.get(name)));
  }

  /** Returns the output of `drover host ls --all -o json`. */
  async hosts<T = Record<string, unknown>>(): Promise<T[]> {
    return await this.#ask(async (client) =>
      (await client.hosts.list({ includeRemoved: true })).map((host) => messageJson(api.HostSchema, host)),
    );
  }

  /** Whether the control plane responds. */
  async answers(): Promise<boolean> {
    return await this.sandboxes().then(
      () => true,
      () => false,
    );
  }

  /** `drover run -d --name NAME host -- COMMAND`: resolves when the sandbox is ready. */
  async begin<T = Record<string, unknown>>(name: string, command: readonly string[], spec: Spec = {}): Promise<T> {
    return await this.#ask(async (client) => {
      const { id } = await client.sandboxes.create({ name, spec: { image: 'host', ...spec, command: [...command] } });
      return messageJson(api.SandboxSchema, await client.sandboxes.waitReady(id));
    });
  }

  /** `drover sandbox create --name NAME host -- COMMAND`. */
  async create(name: string, command: readonly string[], spec: Spec = {}): Promise<void> {
    await this.#ask(async ({ sandboxes }) => await sandboxes.create({ name, spec: { image: 'host', ...spec, command: [...command] } }));
  }

  /** `drover sandbox start NAME`. */
  async restart(name: string): Promise<void> {
    await this.#ask(async ({ sandboxes }) => await sandboxes.waitFor((await sandboxes.start(name)).id, ['running']));
  }

  /** `drover sandbox stop NAME`. @param graceMs defaults to the sandbox's own grace */
  async stop(name: string, graceMs?: number): Promise<void> {
    const options = graceMs === undefined ? {} : { graceMs };
    await this.#ask(async ({ sandboxes }) => await sandboxes.waitFor((await sandboxes.stop(name, options)).id, endedStates));
  }

  /** `drover sandbox rm --force NAMES…`. */
  async remove(...names: readonly string[]): Promise<void> {
    await this.#ask(
      async ({ sandboxes }) =>
        await Promise.all(
          names.map(async (name) => await sandboxes.waitFor((await sandboxes.remove(name, { graceMs: 1 })).id, ['deleted'])),
        ),
    );
  }

  /** `drover exec NAME -- ARGV`. */
  async exec(name: string, argv: readonly string[], { input, user = '' }: ExecOptions = {}): Promise<Finished> {
    return await this.#ask(async ({ sandboxes }) => {
      const handle = sandboxes.exec(name, { argv, user, stdin: input !== undefined });
      if (input !== undefined) handle.stdin.end(input);
      const [stdout, stderr, { code }] = await Promise.all([buffer(handle.stdout), buffer(handle.stderr), handle.exit]);
      return { code, stdout: stdout.toString(), stderr: stderr.toString() };
    });
  }

  /** Reads the output of `drover exec NAME -- ARGV` to its end, or until the signal aborts. Returns the number of bytes. */
  async drain(name: string, argv: readonly string[], signal?: AbortSignal): Promise<number> {
    return await this.#ask(async ({ sandboxes }) => {
      const handle = sandboxes.exec(name, { argv, ...(signal === undefined ? {} : { signal }) });
      // A failed exec rejects all three promises. Only the last one is awaited.
      handle.started.catch(() => undefined);
      handle.exit.catch(() => undefined);
      let bytes = 0;
      try {
        for await (const chunk of handle.stdout) bytes += (chunk as Uint8Array).byteLength;
        await handle.exit;
      } catch (error) {
        if (signal?.aborted !== true) throw error;
      }
      return bytes;
    });
  }

  /** Returns the standard output that `drover logs NAME` prints. */
  async logs(name: string): Promise<string> {
    return await this.#ask(async ({ sandboxes }) => {
      const chunks: Uint8Array[] = [];
      for await (const { stderr, data } of sandboxes.logs(name)) if (!stderr) chunks.push(data);
      return Buffer.concat(chunks).toString();
    });
  }

  /** Waits until the types of all events of a sandbox or host, in order, satisfy the condition. */
  async saw(subject: string, kinds: readonly string[], isExpected: (types: readonly string[]) => boolean): Promise<void> {
    await eventually('the control plane responds', async () => await this.answers());
    await this.#ask(async ({ events }) => {
      const types: string[] = [];
      for await (const { type } of events.watch({ subject, kinds, fromStart: true })) {
        types.push(type);
        if (isExpected(types)) return;
      }
      throw new Error(`the events of ${subject} ended with ${types.join()}`);
    });
  }

  /** Runs a request on the shared connection, which is closed after a request failed. */
  async #ask<T>(operation: (client: DroverClient) => Promise<unknown>): Promise<T> {
    const expiry = Promise.withResolvers<never>();
    const timer = setTimeout(() => expiry.reject(new Error(`the control plane did not respond within ${requestMs} ms`)), requestMs);
    let client: DroverClient | undefined;
    try {
      client = this.#client ??= await connectDrover(await this.connection());
      return (await Promise.race([operation(client), expiry.promise])) as T;
    } catch (error) {
      // A refusal is a response: keep the connection, because other requests may be pending on it.
      if (!(error instanceof DroverError) || error.transient) this.#closeClient(client);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  #closeClient(client = this.#client): void {
    client?.close();
    if (this.#client === client) this.#client = undefined;
  }

  /** Starts `drover ARGS…` without waiting for its end. */
  spawn(args: readonly string[]) {
    return execa(launcher, args, { env: this.environment, reject: false, stdin: 'pipe', stripFinalNewline: false });
  }

  /** Returns the connection options for the SDK. */
  async connection(): Promise<{ readonly server: string; readonly token: string; readonly caPem: string }> {
    const data = join(this.data, 'control-plane');
    const [token = '', caPem = '', state = '{}'] = await Promise.all(
      ['admin-token', join('pki', 'ca.pem'), 'server.json'].map((name) => readFile(join(data, name), 'utf8')),
    );
    // The port survives a restart.
    const host = /ready on https:\/\/(\S+):\d+/.exec(this.#output)?.[1] ?? '127.0.0.1';
    return { server: `https://${host}:${(JSON.parse(state) as { apiPort: number }).apiPort}`, token: token.trim(), caPem };
  }

  async log(): Promise<string> {
    return await readFile(join(this.data, 'drover.log'), 'utf8').catch(() => '');
  }

  /**
   * Removes every sandbox, ends every process of this instance and deletes its directory. The log is copied to the directory named by
   * DROVER_TEST_LOGS, under the name of the instance's directory.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      const sandboxes = await this.sandboxes<{ id: string }>().catch(() => []);
      if (sandboxes.length > 0) await this.remove(...sandboxes.map(({ id }) => id));
      await this.interrupt();
    } finally {
      this.#closeClient();
      // A killed part leaves processes behind, for instance the gateway.
      await endProcesses(await processesUnder(this.data));
      const [logs, log] = [process.env['DROVER_TEST_LOGS'], await this.log()];
      if (logs !== undefined && log !== '') {
        await mkdir(logs, { recursive: true });
        await writeFile(join(logs, `${basename(this.directory)}.log`), log);
      }
      await removeDirectory(this.directory);
    }
  }
}

/** Creates a directory that sandboxes can write to, and returns its path. Root in a sandbox is an unprivileged uid on the host. */
export async function sharedDirectory(directory: string): Promise<string> {
  const shared = join(directory, 'shared');
  await mkdir(shared);
  await execa('chmod', ['777', shared]);
  return shared;
}

/** Polls a condition until its value is truthy. An error that it throws ends the wait. A failure includes `lastSeen`. */
export async function eventually<T>(
  description: string,
  condition: () => Promise<T | undefined | false> | T | undefined | false,
  timeoutMs = 30_000,
  lastSeen?: () => unknown,
): Promise<T> {
  const end = Date.now() + timeoutMs;
  for (;;) {
    const value = await condition();
    if (value !== undefined && value !== false) return value;
    if (Date.now() > end) {
      const instead = lastSeen === undefined ? '' : `\nseen last: ${JSON.stringify(lastSeen(), undefined, 1)}`;
      throw new Error(`in ${timeoutMs} ms this did not come true: ${description}${instead}`);
    }
    await delay(50);
  }
}

/** Unmounts every mount below a directory and deletes it. */
export async function removeDirectory(directory: string): Promise<void> {
  const mounts = (await readFile('/proc/mounts', 'utf8'))
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((path) => path.startsWith(`${directory}/`));
  for (const path of mounts.toReversed()) await execa('umount', ['-l', path], { reject: false });
  await rm(directory, { recursive: true, force: true });
}

/** Lists the mounts, namespaces, interfaces and cgroups of sandboxes on this machine, for a test to compare before and after. */
export async function traces(): Promise<readonly string[]> {
  const mounts = (await readFile('/proc/mounts', 'utf8'))
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((path) => path.includes('/sandboxes/sb-'));
  // /proc/net/dev shows this process's network namespace. /sys shows the one of the process that mounted it.
  const interfaces = (await readFile('/proc/net/dev', 'utf8'))
    .split('\n')
    .flatMap((line) => /^ *(d[0-9a-f]{8}[-gp][0-9]*):/.exec(line)?.[1] ?? []);
  const namespaces = await readdir('/run/netns').catch(() => []);
  const cgroups = (await Promise.all(['/sys/fs/cgroup', '/sys/fs/cgroup/pids'].map((path) => readdir(path).catch(() => [])))).flat();
  const named = [...namespaces, ...cgroups].filter((name) => /^drover-[0-9a-f]{8}/.test(name));
  return [...mounts, ...interfaces, ...named].toSorted();
}

/** Returns the common part of the names of an agent's interfaces and namespaces. Its gateway has the first address of its pool. */
export async function networkTag(gatewayAddress: string): Promise<string> {
  const { stdout } = await execa('ip', ['-4', '-o', 'address', 'show', 'to', `${gatewayAddress}/32`]);
  const tag = /^\d+: d([0-9a-z]+)g\s/m.exec(stdout)?.[1];
  if (tag === undefined) throw new Error(`no agent has the address ${gatewayAddress}: ${stdout}`);
  return tag;
}
