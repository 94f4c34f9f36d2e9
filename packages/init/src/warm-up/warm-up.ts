import { once } from 'node:events';
import { mkdirSync, rmSync } from 'node:fs';
import { connect, type Server } from 'node:net';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import type { InitConfig } from '../config.ts';
import { Identity } from '../identity/index.ts';
import { closeGraceMs, warmUpMs } from '../limits.ts';
import { ownCommand } from '../own-program.ts';
import { spawnProcess } from '../processes/index.ts';
import { Sandbox } from '../sandbox.ts';
import { createStrictServer } from '../server/index.ts';
import { createInitService } from '../service.ts';
import { listenForRegister, runSession } from './control-plane.ts';
import { warmUpIdentity, warmUpUri } from './identity.ts';

/**
 * Runs the whole start of a sandbox within init, before its sandbox exists: the session, Register, the main process and its output. Code costs
 * ten times as much on its first run as later, and no caller waits for this one.
 *
 * The sandbox gets its root, name, limits and network later, so nothing of the present ones may be cached: users, programs and directories are
 * looked up at each start of a process (`resolveCommand`), addresses need no resolver, and neither the local time nor the host's name is read.
 * The run leaves nothing: no descriptor, timer or child, and no file in the run directory. Its sockets are in a directory that only root can
 * enter, not in the network, and only its own TLS contexts trust its certificate.
 *
 * @throws {Error} when it fails, or takes longer than `warmUpMs`
 */
export async function warmUp(runDirectory: string): Promise<void> {
  const directory = join(runDirectory, 'warm-up');
  mkdirSync(directory, { mode: 0o700 });
  const paths = { session: join(directory, 'session'), control: join(directory, 'control') };
  const config = warmUpConfig();
  const sandbox = new Sandbox({ config, runDirectory: directory, bootId: 'warm-up', spawn: spawnProcess });
  const identity = new Identity({
    config,
    runDirectory: directory,
    identity: warmUpIdentity,
    bootstrapToken: 'warm-up',
    renewed: () => undefined,
    transport: () => connect(paths.control),
  });
  const service = createInitService({ sandbox, identity, warn: () => undefined });
  const { listener } = createStrictServer({
    identity: warmUpIdentity,
    controlPlaneUri: warmUpUri,
    peerAddress: undefined,
    accept: (socket) => service.accept(socket),
    refused: () => undefined,
  });
  const control = listenForRegister();
  const deadline = new AbortController();
  const timer = setTimeout(() => {
    deadline.abort(new Error(`it took longer than ${warmUpMs} ms`));
    sandbox.stop(0);
  }, warmUpMs);
  try {
    await Promise.all([listen(control, paths.control), listen(listener, paths.session)]);
    identity.connectEarly();
    await runSession(connect(paths.session), deadline.signal);
    await sandbox.end;
  } finally {
    clearTimeout(timer);
    control.close();
    listener.close();
    await service.close(closeGraceMs);
    rmSync(directory, { recursive: true, force: true });
  }
  // The closed handles are released in the next turn of the loop.
  await turn();
}

async function listen(server: Server, path: string): Promise<void> {
  server.listen(path);
  await once(server, 'listening');
}

/** The main process is init's loader, or else its Node.js: the one program that exists in every root. */
function warmUpConfig(): InitConfig {
  const [program = ''] = ownCommand();
  return {
    version: 1,
    sandboxId: 'warm-up',
    hostname: '',
    controlPlaneUri: warmUpUri,
    control: { host: 'warm-up', port: 0 },
    project: 'warm-up',
    name: 'warm-up',
    listen: { host: '', port: 0, peer: '' },
    main: {
      argv: [program, '--version'],
      env: [],
      workdir: '/',
      user: '',
      terminal: false,
      rows: 0,
      columns: 0,
      stdin: false,
      stopSignal: 15,
    },
    stopGraceMs: 0,
    startCount: 0,
  };
}
