import { closeSync, openSync, rmSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DroverError, writeFileAtomic, type Logger } from '@drover/foundation';
import {
  daemon,
  isDaemon,
  openListener,
  ownIdentity,
  reapOrphans,
  Supervisor,
  type PassedDescriptor,
  type SignalPlan,
} from '@drover/supervisor';
import type { GatewayAddresses, GatewayDaemon, RunAs } from './daemon.ts';
import { relayLogLine } from './log.ts';

/** Beside the control socket: which process the gateway is, for an agent that has to end it. */
export const gatewayIdentityFile = 'process.json';

export interface GatewayOptions extends GatewayAddresses {
  readonly daemons: readonly GatewayDaemon[];
  /** Starts a daemon, whose name follows: this program again. */
  readonly command: readonly [string, ...string[]];
  /** Whom the daemons become; needs root. */
  readonly runAs: RunAs | undefined;
  readonly logger: Logger;
  /** The gateway's lifetime. */
  readonly signal: AbortSignal;
}

/**
 * Runs the supervisor of a gateway until `signal` aborts. It opens the sockets of all daemons and has no network input itself.
 * @returns the largest exit code of the daemons (G-10)
 * @throws {DroverError} port-in-use, missing-privilege
 */
export async function runGateway(options: GatewayOptions): Promise<number> {
  const { logger, signal, controlSocket } = options;
  signal.throwIfAborted();
  if (options.runAs !== undefined && process.getuid?.() !== 0)
    throw new DroverError('missing-privilege', 'only root can run the gateway as another user');
  const directory = dirname(controlSocket);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  // Before anything else: an agent must be able to end a gateway that never became ready.
  await writeFileAtomic(join(directory, gatewayIdentityFile), JSON.stringify(ownIdentity()), { mode: 0o600, sync: false });
  // G-5: as PID 1 of a container, it is the parent of every orphan.
  using _reaper = process.pid === 1 ? reapOrphans(isDaemon) : undefined;
  using descriptors = new DisposableStack();
  const supervisor = new Supervisor({ logger });
  using _signals = supervisor.onSignals(signalPlan(options.daemons));
  for (const spec of options.daemons) {
    const passed = [
      ...spec.sockets(options).map(({ name, at }) => descriptors.use(listen(name, at))),
      descriptors.use(openState(join(directory, `${spec.name}.state`))),
    ];
    supervisor.start(
      daemon(
        {
          name: spec.name,
          argv: [
            ...options.command,
            spec.name,
            ...(options.runAs === undefined ? [] : ['--user', `${options.runAs.uid}:${options.runAs.gid}`]),
          ],
          env: { ...inherited(), ...spec.env },
          sockets: passed,
          health: 'channel',
          policy: spec.policy,
          onLine: (line, pid) => relayLogLine(logger, { process: spec.name, childPid: pid }, line),
        },
        logger,
      ),
    );
  }
  signal.addEventListener('abort', () => void supervisor.stop(), { once: true });
  return await supervisor.ended;
}

function inherited(): Record<string, string> {
  return Object.fromEntries(['PATH', 'DROVER_LOG'].flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])));
}

/** SIGHUP reloads every daemon that supports it (G-8). */
function signalPlan(daemons: readonly GatewayDaemon[]): SignalPlan {
  const plan: Record<string, { reload: string[]; restart: string[] }> = {};
  const entry = (signal: string): { reload: string[]; restart: string[] } => (plan[signal] ??= { reload: [], restart: [] });
  for (const { name, policy, restartSignal } of daemons) {
    if (policy.reloadSignal !== undefined) entry('SIGHUP').reload.push(name);
    if (restartSignal !== undefined) entry(restartSignal).restart.push(name);
  }
  entry('SIGHUP');
  return plan;
}

/** An address of the sandboxes' network can only be in use by another gateway, which its agent no longer knows. */
function listen(name: string, at: Parameters<typeof openListener>[1]): PassedDescriptor {
  try {
    return openListener(name, at);
  } catch (error) {
    if (!('host' in at) || DroverError.from(error).code !== 'port-in-use') throw error;
    throw new DroverError('port-in-use', `${at.host}:${at.port}, where the gateway is to listen, is held by another process`, {
      hint: `see which with \`ss -Hltnp sport = :${at.port}\` and end it; a gateway that an earlier agent left is named \`drover gateway\``,
      cause: error,
    });
  }
}

/** A file without a name: only a daemon that is passed the descriptor has it. */
function openState(path: string): PassedDescriptor {
  const fd = openSync(path, 'w+', 0o600);
  rmSync(path);
  return { name: 'state', fd, [Symbol.dispose]: () => closeSync(fd) };
}
