import { randomUUID } from 'node:crypto';
import { access, closeSync, existsSync, readFileSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { BoundSocket } from 'node:net';
import { join } from 'node:path';
import { gateVariable, standbyFile, standbyVariable, type InitConfig } from '../config.ts';
import { Identity } from '../identity/identity.ts';
import { farewellMs, killWaitMs } from '../limits.ts';
import { spawnProcess } from '../processes/spawn.ts';
import { Sandbox } from '../sandbox.ts';
import { createStrictServer, type ServerIdentity } from '../server/tls.ts';
import { IdleTrim } from './memory.ts';
import { Reaper } from './reaper.ts';

/** Signals that go on to the user's process group as they are; SIGTERM stops (I-37). */
const forwarded = ['SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGWINCH', 'SIGCONT'] as const;

/** drover-init as PID 1 of a sandbox. */
export async function main(runDirectory: string): Promise<void> {
  // Nothing of how init was started is the workload's: its environment comes from the config.
  const addon = process.env['DROVER_PTY_ADDON'];
  const gate = process.env[gateVariable];
  const isStandby = process.env[standbyVariable] === '1';
  for (const name of Object.keys(process.env)) delete process.env[name];
  if (addon !== undefined) process.env['DROVER_PTY_ADDON'] = addon;
  // One thread is enough for the log and for copies, and each costs memory; read when the first is started.
  process.env['UV_THREADPOOL_SIZE'] = '2';
  // Started now: once the workload has used up its processes, libuv could start none and would abort.
  access('/', () => undefined);

  if (gate !== undefined) {
    if (isStandby) await standBy(runDirectory);
    waitForEnd(Number(gate));
  }
  const { config, certificates, bootstrapToken } = readRunDirectory(runDirectory);
  const idle = new IdleTrim();
  const sandbox = new Sandbox({
    config,
    runDirectory,
    bootId: randomUUID(),
    spawn: spawnProcess,
  });
  const identity = new Identity({
    config,
    runDirectory,
    identity: certificates,
    bootstrapToken,
    renewed: (renewed) => server.renew(renewed),
  });
  // gRPC and protobuf cost as much CPU time as the rest of the start: they are loaded while the control plane is on its way here.
  const listening = Promise.withResolvers<void>();
  const service = listening.promise.then(async () =>
    (await import('../service.ts')).createInitService({ sandbox, identity, onCall: () => idle.touch(), warn }),
  );
  service.catch((error: unknown) => fail(`cannot serve: ${String(error)}`));
  const server = createStrictServer({
    identity: certificates,
    controlPlaneUri: config.controlPlaneUri,
    peerAddress: config.listen.peer,
    // Loaded by then, and the first to see the socket's errors: it has listened since the turn in which the server began to.
    accept: (socket) => void service.then((grpc) => grpc.accept(socket)),
    refused: (reason) => warn(`refused a connection: ${reason}`),
  });
  const { listener } = server;
  const { host, port } = config.listen;
  const cannotListen = (error: Error): never => fail(`cannot listen on ${host}:${port}: ${error.message}`);
  listener.on('error', cannotListen);
  listener.listen(bind(host, port, cannotListen), () => {
    idle.touch();
    const address = listener.address();
    writeSync(1, `drover-init listening on ${typeof address === 'object' ? String(address?.port) : address}\n`);
    identity.connectEarly();
    listening.resolve();
  });

  const reaper = new Reaper();
  process.on('SIGTERM', () => sandbox.stop());
  for (const signal of forwarded) process.on(signal, () => sandbox.main?.kill(signal));

  void sandbox.end.then(async (end) => {
    await killEverything(sandbox);
    reaper.stop();
    idle.stop();
    listener.close();
    // A sandbox that ends before it listens has a service to wait for too.
    listening.resolve();
    await (await service).close(farewellMs);
    process.exit(end.code);
  });
}

/** Rehearses, and says that it has. An init that could not waits at its gate all the same, and starts as any other; nobody is to use it. */
async function standBy(runDirectory: string): Promise<void> {
  try {
    const { rehearse } = await import('../rehearsal/rehearsal.ts');
    await rehearse(runDirectory);
    writeFileSync(join(runDirectory, standbyFile), '', { mode: 0o400 });
  } catch (error) {
    warn(`the rehearsal failed: ${String(error)}`);
  }
}

/** The host is an address. Through a name lookup, as `listen(port, host)` does it, Node would compile its pattern of IPv6: 6 ms and 0.7 MB. */
function bind(host: string, port: number, failed: (error: Error) => never): BoundSocket {
  try {
    return new BoundSocket({ host, port });
  } catch (error) {
    return failed(error as Error);
  }
}

/**
 * Waits until the host has closed its end: the run directory is complete, or the host has given this start up or died over it, and left no
 * config. Only SIGKILL ends PID 1 in here.
 */
function waitForEnd(descriptor: number): void {
  try {
    while (readSync(descriptor, Buffer.alloc(1)) > 0);
  } catch (error) {
    warn(`the wait for the host broke: ${String(error)}`);
  }
  // It is nothing for the workload.
  closeSync(descriptor);
}

interface Startup {
  readonly config: InitConfig;
  readonly certificates: ServerIdentity;
  readonly bootstrapToken: string;
}

/** Read once: key, token and config (its environment may hold secrets) leave the disk, and every start writes them anew (I-6). */
function readRunDirectory(directory: string): Startup {
  try {
    const config = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8')) as InitConfig;
    if (config.version !== 1) fail(`the config has version ${String(config.version)}; this init reads version 1`);
    const certificates = {
      caPem: readFileSync(join(directory, 'ca.pem'), 'latin1'),
      certificatePem: readFileSync(join(directory, 'cert.pem'), 'latin1'),
      keyPem: readFileSync(join(directory, 'key.pem'), 'latin1'),
    };
    // A start that is not to register is given none.
    const token = join(directory, 'token');
    const bootstrapToken = existsSync(token) ? readFileSync(token, 'latin1').trim() : '';
    for (const name of ['config.json', 'key.pem', 'token']) rmSync(join(directory, name), { force: true });
    return { config, certificates, bootstrapToken };
  } catch (error) {
    return fail(`cannot read ${directory}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** As PID 1, everything there is; otherwise (no PID namespace) what init itself started. */
async function killEverything(sandbox: Sandbox): Promise<void> {
  if (process.pid === 1) {
    try {
      process.kill(-1, 'SIGKILL');
    } catch {
      // ESRCH: nobody else is left.
    }
  }
  await Promise.all([sandbox.execs.killAll(), sandbox.steps.stop()]);
  const settled = Promise.all([sandbox.execs.settled(), sandbox.steps.settled()]);
  let timer: NodeJS.Timeout | undefined;
  await Promise.race([settled, new Promise<void>((resolve) => (timer = setTimeout(resolve, killWaitMs)))]);
  clearTimeout(timer);
}

function warn(message: string): void {
  writeSync(2, `drover-init: ${message}\n`);
}

function fail(message: string): never {
  warn(message);
  process.exit(125);
}
