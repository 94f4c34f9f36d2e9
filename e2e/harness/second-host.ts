import { createHash } from 'node:crypto';
import { readdir, readFile, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { eventually, launcher, traces, type Finished, type TestDrover } from './drover.ts';
import { endProcesses, processesUnder } from './processes.ts';

/**
 * The network of another machine: a namespace with one cable to this machine. Its firewall passes outgoing TCP to the opened ports, and the
 * replies to it. It drops all other packets in both directions.
 */
export class HostNetwork implements AsyncDisposable {
  readonly namespace: string;
  /** The address of this machine's end. */
  readonly controlPlaneAddress: string;
  /** The address of the other machine's end. */
  readonly hostAddress: string;

  private constructor(namespace: string, prefix: string) {
    this.namespace = namespace;
    this.controlPlaneAddress = `${prefix}.1`;
    this.hostAddress = `${prefix}.2`;
  }

  /**
   * @param prefix the first three bytes of the cable's network, such as `10.215.255`
   * @param firewall false for a machine without a firewall, such as a public server
   */
  static async create(prefix: string, { firewall = true } = {}): Promise<HostNetwork> {
    const network = new HostNetwork(`e2e-${process.pid}`, prefix);
    const { namespace, controlPlaneAddress, hostAddress, cable } = network;
    await execa('ip', ['netns', 'add', namespace]);
    try {
      await execa('ip', ['link', 'add', cable, 'type', 'veth', 'peer', 'name', 'uplink', 'netns', namespace]);
      await execa('ip', ['address', 'add', `${controlPlaneAddress}/30`, 'dev', cable]);
      await execa('ip', ['link', 'set', cable, 'up']);
      await execa('ip', ['-n', namespace, 'address', 'add', `${hostAddress}/30`, 'dev', 'uplink']);
      for (const link of ['lo', 'uplink']) await execa('ip', ['-n', namespace, 'link', 'set', link, 'up']);
      if (firewall)
        await network.#nft(`
        table inet firewall {
          set open { type inet_service; }
          chain in { type filter hook input priority 0; policy accept; iifname "uplink" ct state != { established, related } drop; }
          chain out { type filter hook output priority 0; policy accept; oifname "uplink" tcp dport @open accept; oifname "uplink" drop; }
        }`);
      return network;
    } catch (error) {
      await network[Symbol.asyncDispose]();
      throw error;
    }
  }

  get cable(): string {
    return this.namespace;
  }

  /** Allows the machine to dial these ports. */
  async open(ports: readonly number[]): Promise<void> {
    await this.#nft(`add element inet firewall open { ${ports.join(', ')} }`);
  }

  /** Drops every packet from now on, as if the cable were unplugged. */
  async cut(): Promise<void> {
    await this.#nft(`
      table inet cut {
        chain in { type filter hook input priority -10; iifname "uplink" drop; }
        chain out { type filter hook output priority -10; oifname "uplink" drop; }
      }`);
  }

  async mend(): Promise<void> {
    await this.#nft('delete table inet cut');
  }

  /** Returns a program and its arguments that run in that machine's network. Its files, cgroups and processes are this machine's. */
  command(...argv: readonly [string, ...string[]]): readonly [string, ...string[]] {
    return ['nsenter', `--net=/run/netns/${this.namespace}`, '--', ...argv];
  }

  async #nft(rules: string): Promise<void> {
    const [file, ...args] = this.command('nft', '-f', '-');
    await execa(file, args, { input: rules });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await execa('ip', ['link', 'delete', this.cable], { reject: false });
    await execa('ip', ['netns', 'delete', this.namespace], { reject: false });
  }
}

/** Another host: `drover agent` with its own state directory and network. */
export class SecondHost implements AsyncDisposable {
  readonly network: HostNetwork;
  readonly state: string;
  readonly #drover: TestDrover;
  #agent: ReturnType<typeof startAgent> | undefined;
  #output = '';
  /** Undefined while the agent runs; -1 after a signal. */
  #code: number | undefined;

  constructor(drover: TestDrover, network: HostNetwork, name: string) {
    this.#drover = drover;
    this.network = network;
    this.state = join(drover.directory, name);
  }

  /** Runs `drover ARGS…` on that host to its end. */
  async run(args: readonly string[], timeoutMs = 60_000): Promise<Finished> {
    const [file, ...rest] = this.network.command(launcher, ...args);
    const result = await execa(file, rest, { env: this.#drover.environment, reject: false, timeout: timeoutMs, stripFinalNewline: false });
    if (result.timedOut) throw new Error(`drover ${args.join(' ')} took longer than ${timeoutMs} ms; ${result.stdout}${result.stderr}`);
    return { code: result.exitCode ?? -1, stdout: result.stdout, stderr: result.stderr };
  }

  /** Runs `drover agent join URL --token TOKEN ARGS…` without starting the agent. */
  async join(url: string, token: string, args: readonly string[] = []): Promise<Finished> {
    return await this.run(['agent', 'join', url, '--token', token, '--state', this.state, '--no-run', '--standbys', '0', ...args]);
  }

  /** Starts the agent and waits until its link is up. */
  async start(args: readonly string[] = []): Promise<void> {
    this.startUnchecked(args);
    await eventually('the link of the second host is up', () => {
      if (this.#code !== undefined) throw new Error(`the agent ended with ${this.#code}: ${this.#output}`);
      return this.#output.includes('the link is up');
    });
  }

  startUnchecked(args: readonly string[] = []): void {
    this.#output = '';
    const agent = startAgent(this.network.command(launcher, 'agent', '--state', this.state, ...args));
    for (const stream of [agent.stdout, agent.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (this.#output += text));
    this.#agent = agent;
    this.#code = undefined;
    void agent.then(({ exitCode }) => {
      if (this.#agent === agent) this.#code = exitCode ?? -1;
    });
  }

  /** The output of the agent since its last start. */
  get output(): string {
    return this.#output;
  }

  get pid(): number {
    return this.#agent?.pid ?? 0;
  }

  /** Waits until the agent exits, after the signal if there is one. Returns its exit code. */
  async ended(signal?: 'SIGINT' | 'SIGKILL', timeoutMs = 30_000): Promise<number> {
    if (this.#agent === undefined) return 0;
    if (signal !== undefined) this.#agent.kill(signal);
    await eventually('the agent of the second host ends', () => this.#code !== undefined, timeoutMs);
    return this.#code ?? -1;
  }

  /** Ends the agent and removes the leftovers of a faulty host. The network stays: the control plane may listen there. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.ended('SIGINT');
    } finally {
      await endProcesses(await processesUnder(this.state));
      await removeContainers(this.state);
    }
  }
}

function startAgent([file, ...args]: readonly [string, ...string[]]) {
  return execa(file, args, { reject: false, stdin: 'ignore', cleanup: false, env: { NO_COLOR: '1' } });
}

/** Returns a function that lists the `traces` of this instance's hosts alone. Call `tracesOf` while the instance runs. */
export async function tracesOf(drover: TestDrover): Promise<() => Promise<readonly string[]>> {
  const hosts = await drover.hosts<{ id: string }>();
  const tags = hosts.map(({ id }) => tagOf(id));
  return async () =>
    (await traces()).filter((trace) => trace.startsWith(`${drover.directory}/`) || tags.some((tag) => trace.includes(tag)));
}

/** Derives the tag in the names of an agent's interfaces, as the agent does. */
const tagOf = (hostId: string): string => createHash('sha256').update(hostId).digest('hex').slice(0, 8);

/** Removes the interfaces, namespaces, firewall table and cgroups of a state directory's agent, without the agent. */
export async function removeTraces(state: string): Promise<void> {
  const identity = await readFile(join(state, 'identity', 'identity.json'), 'utf8').catch(() => '');
  if (identity === '') return;
  const tag = tagOf((JSON.parse(identity) as { readonly hostId: string }).hostId);
  const ours = (name: string): boolean => name.startsWith(`drover-${tag}`);
  for (const name of (await readdir('/run/netns').catch(() => [])).filter(ours))
    await execa('ip', ['netns', 'delete', name], { reject: false });
  const { stdout } = await execa('ip', ['-brief', 'link']);
  for (const [name] of stdout.matchAll(new RegExp(`^d${tag}[^@\\s]*`, 'gm')))
    await execa('ip', ['link', 'delete', name], { reject: false });
  await execa('nft', ['delete', 'table', 'inet', `drover-${tag}`], { reject: false });
  for (const parent of ['/sys/fs/cgroup', ...(await readdir('/sys/fs/cgroup')).map((name) => join('/sys/fs/cgroup', name))])
    for (const name of (await readdir(parent).catch(() => [])).filter(ours))
      await execa('find', [join(parent, name), '-depth', '-type', 'd', '-exec', 'rmdir', '{}', ';'], { reject: false });
}

/** Lists the containers that the OCI runtime knows of in a host's state directory. */
async function allContainers(state: string): Promise<readonly string[]> {
  const names = await readdir(join(state, 'program')).catch(() => []);
  return names.filter((name) => name.startsWith('sb-')).toSorted();
}

/** Lists the sandboxes of all containers except standbys. */
export async function containers(state: string): Promise<readonly string[]> {
  return await sandboxesOf(state, await allContainers(state));
}

/** Maps container ids to sandbox ids. Standbys are left out; a container without a record keeps its own id. */
export async function sandboxesOf(state: string, ids: readonly string[]): Promise<readonly string[]> {
  const owners = new Map<string, { readonly id: string; readonly phase: string }>();
  for (const id of await readdir(join(state, 'sandboxes')).catch(() => [])) {
    const text = await readFile(join(state, 'sandboxes', id, 'record.json'), 'utf8').catch(() => '{}');
    const { container = id, phase = '' } = JSON.parse(text) as { readonly container?: string; readonly phase?: string };
    owners.set(container, { id, phase });
  }
  const isStandby = (container: string): boolean => owners.get(container)?.id === container && owners.get(container)?.phase === 'creating';
  return ids
    .filter((container) => !isStandby(container))
    .map((container) => owners.get(container)?.id ?? container)
    .toSorted();
}

/** Deletes the containers of a host's state directory, their cgroups and their network namespaces, without the agent. */
export async function removeContainers(state: string): Promise<void> {
  const ids = await allContainers(state);
  if (ids.length === 0) return;
  const cgroups = new Set<string>();
  for (const id of ids) {
    const pid = (await readFile(join(state, 'sandboxes', id, 'init.pid'), 'utf8').catch(() => '')).trim();
    const lines = await readFile(`/proc/${pid}/cgroup`, 'utf8').catch(() => '');
    for (const line of lines.split('\n')) {
      const parent = /^\d+:[^:]*:(\/drover-[0-9a-z]+)\//.exec(line)?.[1];
      if (parent !== undefined) cgroups.add(parent);
    }
    await execa('runc', ['--root', join(state, 'program'), 'delete', '--force', id], { reject: false });
  }
  for (const parent of cgroups) {
    const prefix = `${parent.slice(1)}-`;
    for (const name of await readdir('/run/netns'))
      if (name.startsWith(prefix)) await execa('ip', ['netns', 'delete', name], { reject: false });
    for (const hierarchy of await readdir('/sys/fs/cgroup')) await rmdir(join('/sys/fs/cgroup', hierarchy, parent)).catch(() => undefined);
  }
}
