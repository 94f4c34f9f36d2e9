import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { DroverError, hasCode, lockDirectory, prepareDirectory, version, type Logger } from '@drover/foundation';
import { createLogger, openLogOutput } from '@drover/foundation/log';
import { api } from '@drover/protocol';
import { connectDrover, sandboxStateName, type DroverClient } from '@drover/sdk';
import { daemon, probing, Supervisor } from '@drover/supervisor';
import type { Cli } from '../cli.ts';
import { hostStateName } from '../output/index.ts';
import { currentContext, listContexts, nameFor, parseContextName, saveContext, useContext, type Context } from '../context/index.ts';
import { checkMachine, hostChecks, tryListen } from '../doctor/index.ts';
import { upControlPlaneMs, upHostMs, upStopMs, upTakeOverMs } from '../limits.ts';
import {
  checkHostFlags,
  claim,
  defaultDataDirectory,
  type HostFlags,
  linkListen,
  type LivenessFlags,
  parseListen,
  parseLiveness,
  parsePublicHost,
  release,
  saveHostSettings,
} from '../settings/index.ts';
import { LogFile } from './log-file.ts';
import { noticeText } from './notice.ts';

interface UpFlags extends HostFlags, LivenessFlags {
  readonly data?: string;
  readonly listen: string;
  readonly linkListen?: string;
  readonly publicHost?: string;
  /** False with --no-agent. */
  readonly agent?: boolean;
  readonly stopSandboxes?: boolean;
}

/**
 * R-1: runs a control plane and a host on this machine until it is interrupted, each as a supervised process. The sandboxes keep
 * running; the next `up` on the same data directory adopts them.
 */
export default async function up(cli: Cli, _: readonly [], flags: UpFlags): Promise<void> {
  await checkHostFlags(flags);
  if (flags.publicHost !== undefined) parsePublicHost(flags.publicHost);
  const listen = parseListen(flags.listen);
  const data = resolve(flags.data ?? defaultDataDirectory(cli.env));
  const root = process.getuid?.() === 0;
  const withAgent = flags.agent !== false && root;
  if (flags.agent !== false && !root) {
    cli.out.note('not root: this starts the control plane alone, as sandboxes on this machine need root (sudo ./drover up)');
  }
  // Other users may traverse the directory: it contains the roots of sandboxes, whose owners are not root. Secrets have private directories.
  await prepareDirectory(data, 'data directory', '--data', 0o711);
  if (flags.linkListen !== undefined) parseListen(flags.linkListen);
  parseLiveness(flags);
  const orphaned = await claim(data);
  try {
    await check(cli, { data, ...listen }, withAgent, orphaned);
    await runUp(cli, { ...flags, data, listenOn: listen, withAgent });
  } finally {
    await release(data);
  }
}

/** The control plane's subdirectory of the data directory. */
const controlPlaneData = (data: string): string => join(data, 'control-plane');

/** The address for clients on this machine. */
function urlHost(host: string): string {
  if (host === '0.0.0.0' || host === '::') return '127.0.0.1';
  return host.includes(':') ? `[${host}]` : host;
}

async function check(
  cli: Cli,
  settings: { data: string; host: string; port: number },
  withAgent: boolean,
  orphaned: boolean,
): Promise<void> {
  // The processes of a killed `up` need a moment to end.
  const until = Date.now() + (orphaned ? upTakeOverMs : 0);
  const held = (): boolean => [controlPlaneData(settings.data), join(settings.data, 'host')].some(isHeld);
  while (Date.now() < until && (held() || (await tryListen(settings.host, settings.port)) === 'EADDRINUSE'))
    await delay(100, undefined, { signal: cli.signal });
  const names = ['Node.js', 'disk', 'port', 'clock', ...(withAgent ? hostChecks : [])];
  await checkMachine(cli, settings, names, '; or start the control plane alone with --no-agent');
}

/** Whether a process of an earlier `up` holds the directory. */
function isHeld(directory: string): boolean {
  try {
    lockDirectory(directory, '')[Symbol.dispose]();
    return false;
  } catch (error) {
    return hasCode(error, 'failed-precondition');
  }
}

interface Settings extends UpFlags {
  readonly data: string;
  readonly listenOn: ReturnType<typeof parseListen>;
  readonly withAgent: boolean;
}

async function runUp(cli: Cli, settings: Settings): Promise<void> {
  const { data } = settings;
  const log = new LogFile(join(data, 'drover.log'));
  const logger = createLogger({ name: 'up', destination: log });
  logger.info({ version, data }, 'up');
  let quiet = true;
  // Supervision must not wait for the reader of stderr.
  const notices = openLogOutput(2);
  const supervisor = new Supervisor({
    logger,
    onChange: (status, announced) => {
      if (announced === 'running') log.forgetErrors();
      if (quiet || announced === undefined || announced === 'running' || announced === 'stopped') return;
      notices.write(`drover: ${noticeText(status, announced, log.lastError)}; see ${log.path}\n`);
    },
  });
  let client: DroverClient | undefined;
  try {
    const run = { cli, settings, supervisor, logger, log };
    const probe: Probe = async (signal) => {
      const probed = await connectDrover(await contextOf(settings));
      try {
        await probed.version(signal);
      } finally {
        probed.close();
      }
    };
    await startProcess(run, 'control plane', serveArguments(settings), probe, upControlPlaneMs);
    const context = await contextOf(settings);
    client = await connectDrover(context);
    await claim(data, context.server);
    if (settings.withAgent) await startHost(run, context, client);
    // Last step: a failed `up` must not change the current context.
    ready(cli, settings, context.server, await keepContext(cli, context));
    quiet = false;
    await new Promise<void>((stop) => {
      if (cli.signal.aborted) stop();
      cli.signal.addEventListener('abort', () => stop(), { once: true });
    });
    cli.out.note(settings.stopSandboxes === true ? 'stopping the sandboxes' : 'stopping; sandboxes run on');
    if (settings.stopSandboxes === true) await stopSandboxes(cli, client);
  } catch (thrown) {
    // An interrupt during the start is not a failure.
    if (!cli.signal.aborted) throw thrown;
  } finally {
    quiet = true;
    client?.close();
    // Stop the agent first: it signs off at the control plane.
    await supervisor.remove('agent');
    await supervisor.stop();
  }
}

function serveArguments({ data, listenOn: { host, port }, linkListen, publicHost, hostTtl, lostGrace }: Settings): string[] {
  return [
    'serve',
    '--data',
    controlPlaneData(data),
    '--listen',
    `${host.includes(':') ? `[${host}]` : host}:${port}`,
    ...(linkListen === undefined ? [] : ['--link-listen', linkListen]),
    ...(publicHost === undefined ? [] : ['--public-host', publicHost]),
    ...(hostTtl === undefined ? [] : ['--host-ttl', hostTtl]),
    ...(lostGrace === undefined ? [] : ['--lost-grace', lostGrace]),
  ];
}

interface KeptContext {
  readonly name: string;
  /** The previous current context, if it was another. */
  readonly previous: string | undefined;
}

/**
 * Saves the connection to this control plane as a context, and makes it the current one.
 * @throws {DroverError} failed-precondition when --context names the context of another control plane
 */
async function keepContext(cli: Cli, context: Required<Context>): Promise<KeptContext> {
  const contexts = await listContexts(cli.env);
  const known = nameFor(contexts, context);
  const name = cli.connection.context === undefined ? known : parseContextName(cli.connection.context);
  const taken = name === known ? undefined : contexts.find((other) => other.name === name);
  if (taken !== undefined) {
    throw new DroverError('failed-precondition', `the context ${name} is that of another control plane, ${taken.server}`, {
      hint: 'choose another name with --context',
    });
  }
  const previous = await currentContext(cli.env);
  await saveContext(cli.env, { name, ...context });
  await useContext(cli.env, name);
  return { name, previous: previous === name ? undefined : previous };
}

function ready(cli: Cli, { data, withAgent }: Settings, server: string, { name, previous }: KeptContext): void {
  if (cli.out.json) return cli.out.record({ ready: true, server, data, host: withAgent, context: name, previousContext: previous ?? null });
  const next = withAgent ? 'try: ./drover run host -- sh' : 'add a host: ./drover host token';
  cli.out.line(`drover: ready on ${server} — ${next}`);
  if (previous !== undefined) {
    cli.out.line(`drover: commands now go to this control plane (context ${name}); to go back: drover context use ${previous}`);
  }
  const overrides = ['DROVER_SERVER', 'DROVER_CONTEXT'].filter((variable) => (cli.env[variable] ?? '') !== '');
  if (overrides.length > 0)
    cli.out.note(`${overrides.join(' and ')} of your environment still ${overrides.length === 1 ? 'goes' : 'go'} before it`);
}

/** The context of one `up`, which its processes share. */
interface Run {
  readonly cli: Cli;
  readonly settings: Settings;
  readonly supervisor: Supervisor;
  readonly logger: Logger;
  readonly log: LogFile;
}

type Probe = (signal: AbortSignal) => Promise<void>;

/** Starts this program as a supervised process, and waits until it is healthy. @throws {DroverError} unavailable, with its logged error */
async function startProcess(run: Run, name: string, args: readonly string[], probe: Probe, timeoutMs: number): Promise<void> {
  const { cli, supervisor, logger, log } = run;
  const main = process.argv[1];
  if (main === undefined) throw new DroverError('internal', 'the path of this program is not known');
  const env = Object.fromEntries(Object.entries(cli.env).filter((entry): entry is [string, string] => entry[1] !== undefined));
  const argv = [process.execPath, ...process.execArgv, '--', main, ...args] as const;
  const policy = { stopGraceMs: upStopMs, backoffBaseMs: 200 };
  const child = supervisor.start(daemon({ name, argv, env, health: probing(probe), policy }, logger));
  const timeout = AbortSignal.timeout(timeoutMs);
  try {
    const signal = AbortSignal.any([timeout, cli.signal]);
    await child.waitFor(['running', 'restarting', 'circuit-open'], signal);
    // A process that has logged an error would fail again for the same reason. A process without a logged error has a second attempt.
    if (child.status().state !== 'running' && log.lastError === undefined) await child.waitFor(['running', 'circuit-open'], signal);
    if (child.status().state === 'running') return;
  } catch (thrown) {
    if (!timeout.aborted) throw thrown;
  }
  throw new DroverError('unavailable', `the ${name} did not start: ${log.lastError ?? child.status().lastError ?? 'it does not respond'}`, {
    hint: log.lastHint === undefined ? `see ${log.path}` : `${log.lastHint}; its log is ${log.path}`,
  });
}

/** The connection to the control plane of the data directory. With port 0 it uses the port that the kernel chose. */
async function contextOf({ data, listenOn }: Settings): Promise<Required<Context>> {
  const [token, caPem, state] = await Promise.all(
    ['admin-token', join('pki', 'ca.pem'), 'server.json'].map((name) => readFile(join(controlPlaneData(data), name), 'utf8')),
  );
  const { apiPort } = JSON.parse(state ?? '{}') as { apiPort?: number };
  const port = listenOn.port === 0 ? (apiPort ?? 0) : listenOn.port;
  return { server: `https://${urlHost(listenOn.host)}:${port}`, token: (token ?? '').trim(), caPem: caPem ?? '', data };
}

/** Joins this machine to the control plane if it has not, and starts its agent. */
async function startHost(run: Run, { server, caPem }: Required<Context>, client: DroverClient): Promise<void> {
  const { cli, settings } = run;
  const stateDir = join(settings.data, 'host');
  const { joinHost, loadIdentity } = await import('@drover/agent/link');
  const known = await loadIdentity(stateDir);
  // A recreated control plane has no record of this host.
  let hostId = known !== undefined && known.caPem.trim() === caPem.trim() ? known.hostId : undefined;
  if (hostId === undefined || !(await isKnown(client, hostId, cli.signal))) {
    const { token } = await client.hosts.createJoinToken({ signal: cli.signal });
    ({ hostId } = await joinHost({ url: server, token, stateDir, hostname: settings.name ?? hostname(), signal: cli.signal }));
  }
  await saveHostSettings(stateDir, settings);
  const id = hostId;
  const probe: Probe = async (signal) => {
    const host = await client.hosts.get(id, signal);
    const state = hostStateName(host.state);
    if (!['ready', 'cordoned', 'draining'].includes(state)) {
      throw new DroverError('host-unavailable', `the host is ${state}${host.reason === '' ? '' : `: ${host.reason}`}`);
    }
  };
  // Pass the link address: the host may have joined at the address of an earlier start.
  await startProcess(run, 'agent', ['agent', '--state', stateDir, '--link', await linkAddressOf(settings)], probe, upHostMs);
}

/** The link address of this `up`'s control plane. */
async function linkAddressOf({ data, listenOn, linkListen: flag }: Settings): Promise<string> {
  const { host } = linkListen(listenOn, flag);
  const { linkPort } = JSON.parse(await readFile(join(controlPlaneData(data), 'server.json'), 'utf8')) as { linkPort: number };
  return `${urlHost(host)}:${linkPort}`;
}

async function isKnown(client: DroverClient, hostId: string, signal: AbortSignal): Promise<boolean> {
  try {
    return (await client.hosts.get(hostId, signal)).state !== api.HostState.REMOVED;
  } catch (error) {
    if (hasCode(error, 'host-not-found')) return false;
    throw error;
  }
}

async function stopSandboxes(cli: Cli, client: DroverClient): Promise<void> {
  const sandboxes = await client.sandboxes.list();
  const final = ['stopped', 'failed', 'lost', 'deleting', 'deleted'] as const;
  const live = sandboxes.filter(({ state }) => !(final as readonly string[]).includes(sandboxStateName(state)));
  await Promise.all(
    live.map(async ({ id, name }) => {
      try {
        await client.sandboxes.stop(id);
        await client.sandboxes.waitFor(id, final, { timeoutMs: upStopMs * 2 });
      } catch (thrown) {
        cli.out.note(`${name} did not stop: ${DroverError.from(thrown).message}`);
      }
    }),
  );
}
