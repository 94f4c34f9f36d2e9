import { randomUUID } from 'node:crypto';
import { access, closeSync, existsSync, readFileSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { BoundSocket, type Server } from 'node:net';
import { join } from 'node:path';
import { systemClock, withDeadline } from '@drover/foundation';
import { onSignals, reapOrphans } from '@drover/supervisor';
import { gateVariable, standbyFile, standbyVariable, type InitConfig } from '../config.ts';
import { Identity } from '../identity/index.ts';
import { closeGraceMs, killWaitMs } from '../limits.ts';
import { spawnProcess, terminalChildren } from '../processes/index.ts';
import { Sandbox } from '../sandbox.ts';
import { createStrictServer, type ServerIdentity } from '../server/index.ts';
import { IdleTrim } from './memory.ts';

/** Signals that are forwarded to the user's process group; SIGTERM stops the sandbox (I-37). */
const forwarded = ['SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGWINCH', 'SIGCONT'] as const;

/** drover-init as PID 1 of a sandbox. */
export async function main(runDirectory: string): Promise<void> {
  const { gate, isStandby } = takeEnvironment();
  // Starts the threads of the pool: once the workload has used up its processes, libuv could start none and would abort.
  access('/', () => undefined);
  if (gate !== undefined) {
    if (isStandby) await standBy(runDirectory);
    waitForEnd(gate);
  }
  run(runDirectory, readRunDirectory(runDirectory));
}

/** Removes the environment that init was started with: the workload's environment comes from the config alone. */
function takeEnvironment(): { readonly gate: number | undefined; readonly isStandby: boolean } {
  const { DROVER_PTY_ADDON: addon, [gateVariable]: gate, [standbyVariable]: standby } = process.env;
  for (const name of Object.keys(process.env)) delete process.env[name];
  if (addon !== undefined) process.env['DROVER_PTY_ADDON'] = addon;
  // Enough for the log and for copies; each thread costs memory. libuv reads it when it starts the first one.
  process.env['UV_THREADPOOL_SIZE'] = '2';
  return { gate: gate === undefined ? undefined : Number(gate), isStandby: standby === '1' };
}

/** Runs the sandbox to its end, and ends this process with the exit code of its main process. */
function run(runDirectory: string, { config, certificates, bootstrapToken }: Startup): void {
  const idle = new IdleTrim();
  const sandbox = new Sandbox({ config, runDirectory, bootId: randomUUID(), spawn: spawnProcess });
  const identity = new Identity({
    config,
    runDirectory,
    identity: certificates,
    bootstrapToken,
    renewed: (renewed) => server.renew(renewed),
  });
  // gRPC and protobuf cost as much CPU time as the rest of the start. They are loaded while the control plane connects.
  const listening = Promise.withResolvers<void>();
  const service = listening.promise.then(async () =>
    (await import('../service.ts')).createInitService({ sandbox, identity, onCall: () => idle.touch(), warn }),
  );
  service.catch((error: unknown) => fail(`cannot serve: ${String(error)}`));
  const server = createStrictServer({
    identity: certificates,
    controlPlaneUri: config.controlPlaneUri,
    peerAddress: config.listen.peer,
    // The service is loaded by then and handles the socket's errors first: its promise was made before the listener accepts.
    accept: (socket) => void service.then((grpc) => grpc.accept(socket)),
    refused: (reason) => warn(`refused a connection: ${reason}`),
  });
  listen(server.listener, config.listen, () => {
    idle.touch();
    identity.connectEarly();
    listening.resolve();
  });
  const handlers = forwarded.map((signal) => [signal, () => sandbox.main?.kill(signal)]);
  onSignals({ ...Object.fromEntries(handlers), SIGTERM: () => sandbox.stop() });
  const reaper = reapOrphans((pid) => terminalChildren.has(pid));

  void sandbox.end.then(async (end) => {
    await killEverything(sandbox);
    reaper[Symbol.dispose]();
    idle.stop();
    server.listener.close();
    // A sandbox may end before it listens; its service is waited for all the same.
    listening.resolve();
    await (await service).close(closeGraceMs);
    process.exit(end.code);
  });
}

/** Does the warm-up run and reports it. An init whose run failed waits at its gate as well; its host does not use it as a standby. */
async function standBy(runDirectory: string): Promise<void> {
  try {
    const { warmUp } = await import('../warm-up/index.ts');
    await warmUp(runDirectory);
    writeFileSync(join(runDirectory, standbyFile), '', { mode: 0o400 });
  } catch (error) {
    warn(`the warm-up run failed: ${String(error)}`);
  }
}

/**
 * The host is an address. BoundSocket makes no name lookup, unlike `listen(port, host)`, for which Node would compile its pattern of IPv6:
 * 6 ms and 0.7 MB.
 */
function listen(listener: Server, { host, port }: InitConfig['listen'], listening: () => void): void {
  const cannotListen = (error: unknown): never => fail(`cannot listen on ${host}:${port}: ${String(error)}`);
  listener.on('error', cannotListen);
  let bound: BoundSocket;
  try {
    bound = new BoundSocket({ host, port });
  } catch (error) {
    return cannotListen(error);
  }
  listener.listen(bound, () => {
    const address = listener.address();
    writeSync(1, `drover-init listening on ${typeof address === 'object' ? String(address?.port) : address}\n`);
    listening();
  });
}

/**
 * Waits until the host has closed its end: the run directory is complete, or the host has given up or lost this start and left no config.
 * Only SIGKILL ends PID 1 meanwhile.
 */
function waitForEnd(descriptor: number): void {
  try {
    while (readSync(descriptor, Buffer.alloc(1)) > 0);
  } catch (error) {
    warn(`the wait for the host broke: ${String(error)}`);
  }
  // The workload must not inherit it.
  closeSync(descriptor);
}

interface Startup {
  readonly config: InitConfig;
  readonly certificates: ServerIdentity;
  readonly bootstrapToken: string;
}

/** Reads the run directory once. Key, token and config, whose environment may hold secrets, leave the disk; every start writes new ones (I-6). */
function readRunDirectory(directory: string): Startup {
  const read = (name: string): string => readFileSync(join(directory, name), 'latin1');
  try {
    const config = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8')) as InitConfig;
    if (config.version !== 1) fail(`the config has version ${String(config.version)}; this init reads version 1`);
    const certificates = { caPem: read('ca.pem'), certificatePem: read('cert.pem'), keyPem: read('key.pem') };
    // A start that must not register has no token.
    const bootstrapToken = existsSync(join(directory, 'token')) ? read('token').trim() : '';
    for (const name of ['config.json', 'key.pem', 'token']) rmSync(join(directory, name), { force: true });
    return { config, certificates, bootstrapToken };
  } catch (error) {
    return fail(`cannot read ${directory}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** As PID 1, kills every process; without a PID namespace, those that init has started. */
async function killEverything({ execs, steps }: Sandbox): Promise<void> {
  if (process.pid === 1) {
    try {
      process.kill(-1, 'SIGKILL');
    } catch {
      // ESRCH: no other process is left.
    }
  }
  await Promise.all([execs.killAll(), steps.stop()]);
  // A process that hangs in the kernel ends with the PID namespace.
  const settled = Promise.all([execs.settled(), steps.settled()]);
  await withDeadline(settled, killWaitMs, systemClock, () => new Error('a process does not end')).catch(() => undefined);
}

function warn(message: string): void {
  writeSync(2, `drover-init: ${message}\n`);
}

function fail(message: string): never {
  warn(message);
  process.exit(125);
}
