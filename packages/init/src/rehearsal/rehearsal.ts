import { once } from 'node:events';
import { mkdirSync, rmSync } from 'node:fs';
import { connect, type Server } from 'node:net';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import type { InitConfig } from '../config.ts';
import { Identity } from '../identity/index.ts';
import { closeGraceMs, rehearsalMs } from '../limits.ts';
import { ownCommand } from '../own-program.ts';
import { spawnProcess } from '../processes/index.ts';
import { Sandbox } from '../sandbox.ts';
import { createStrictServer } from '../server/index.ts';
import { createInitService } from '../service.ts';
import { listenForRegister, playSession } from './control-plane.ts';
import { rehearsalIdentity, rehearsalUri } from './identity.ts';

/**
 * One whole start of a sandbox, played by init with itself before there is one: the session, Register, the main process and its output. Code
 * that runs for the first time costs ten times what it costs later; so it is paid for while nobody waits.
 *
 * The sandbox's root, name, limits and network come later and are others, and nothing of today's may be kept: users, programs and directories
 * are looked up at each start of a process (`resolveCommand`), addresses need no resolver, and neither the local time nor the host's name
 * is asked for. Nothing of the rehearsal stays either: no descriptor, timer or child, nothing in the run directory; its sockets lie in a
 * directory that root alone may enter, not in the network, and its certificate is trusted in TLS contexts of its own.
 *
 * @throws {Error} when it cannot be played to its end, or not in `rehearsalMs`
 */
export async function rehearse(runDirectory: string): Promise<void> {
  const directory = join(runDirectory, 'rehearsal');
  mkdirSync(directory, { mode: 0o700 });
  const paths = { session: join(directory, 'session'), control: join(directory, 'control') };
  const config = rehearsalConfig();
  const sandbox = new Sandbox({ config, runDirectory: directory, bootId: 'rehearsal', spawn: spawnProcess });
  const identity = new Identity({
    config,
    runDirectory: directory,
    identity: rehearsalIdentity,
    bootstrapToken: 'rehearsal',
    renewed: () => undefined,
    transport: () => connect(paths.control),
  });
  const service = createInitService({ sandbox, identity, warn: () => undefined });
  const { listener } = createStrictServer({
    identity: rehearsalIdentity,
    controlPlaneUri: rehearsalUri,
    peerAddress: undefined,
    accept: (socket) => service.accept(socket),
    refused: () => undefined,
  });
  const control = listenForRegister();
  const deadline = new AbortController();
  const timer = setTimeout(() => {
    deadline.abort(new Error(`it took longer than ${rehearsalMs} ms`));
    sandbox.stop(0);
  }, rehearsalMs);
  try {
    await Promise.all([listen(control, paths.control), listen(listener, paths.session)]);
    identity.connectEarly();
    await playSession(connect(paths.session), deadline.signal);
    await sandbox.end;
  } finally {
    clearTimeout(timer);
    control.close();
    listener.close();
    await service.close(closeGraceMs);
    rmSync(directory, { recursive: true, force: true });
  }
  // What was closed goes in the next turn of the loop.
  await turn();
}

async function listen(server: Server, path: string): Promise<void> {
  server.listen(path);
  await once(server, 'listening');
}

/** The one program that is there whatever the root is: init's loader, or without one its Node. */
function rehearsalConfig(): InitConfig {
  const [program = ''] = ownCommand();
  return {
    version: 1,
    sandboxId: 'rehearsal',
    hostname: '',
    controlPlaneUri: rehearsalUri,
    control: { host: 'rehearsal', port: 0 },
    project: 'rehearsal',
    name: 'rehearsal',
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
