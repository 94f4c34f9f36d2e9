import { parseArgs } from 'node:util';
import { DroverError, type Logger } from '@drover/foundation';
import { createLogger } from '@drover/foundation/log';
import { formatHost, parseAuthority } from '@drover/spec/policy';
import { connectToSupervisor, onSignals, receiveSockets } from '@drover/supervisor';
import type { GatewayAddresses, GatewayDaemon, RunAs } from './daemon.ts';
import { daemons } from './daemons.ts';
import { runGateway } from './gateway.ts';

/** The programs of the gateway, internal to Drover: `drover gateway`, the supervisor, and `drover gateway-daemon NAME`, which it starts. */
export const gatewayPrograms = { gateway: supervisorMain, 'gateway-daemon': daemonMain } as const;

/** Where the supervisor listens, and whom its daemons become. */
export interface GatewayArguments extends GatewayAddresses {
  readonly runAs: RunAs | undefined;
}

const usage = 'drover gateway --control-socket PATH --listen ADDRESS:PORT… [--user UID:GID]';
const daemonUsage = 'drover gateway-daemon NAME [--user UID:GID]';

/** @throws {DroverError} invalid-argument */
export function parseGatewayArguments(argv: readonly string[]): GatewayArguments {
  const { values } = parsing(usage, () =>
    parseArgs({
      args: [...argv],
      options: { 'control-socket': { type: 'string' }, listen: { type: 'string', multiple: true }, user: { type: 'string' } },
    }),
  );
  const { 'control-socket': controlSocket, listen: places = [], user } = values;
  if (controlSocket === undefined) throw new DroverError('invalid-argument', '--control-socket is missing', { hint: usage });
  if (places.length === 0) throw new DroverError('invalid-argument', '--listen is missing', { hint: usage });
  return { controlSocket, proxies: places.map(parsePlace), runAs: parseUser(user, usage) };
}

function parsePlace(text: string): { readonly host: string; readonly port: number } {
  // Port 0 lets the kernel choose; tests use it.
  const anyPort = text.endsWith(':0');
  const { host, port } = parseAuthority(anyPort ? text.slice(0, -2) : text, anyPort ? 0 : undefined);
  if (host.kind !== 'address') throw new DroverError('invalid-argument', `--listen ${text} is not an address and a port`, { hint: usage });
  return { host: formatHost(host).replace(/^\[|\]$/g, ''), port };
}

/** @throws {DroverError} invalid-argument */
export function parseDaemonArguments(argv: readonly string[]): { readonly daemon: GatewayDaemon; readonly runAs: RunAs | undefined } {
  const { values, positionals } = parsing(daemonUsage, () =>
    parseArgs({ args: [...argv], options: { user: { type: 'string' } }, allowPositionals: true }),
  );
  const [name, ...rest] = positionals;
  const daemon = daemons.find((row) => row.name === name);
  if (daemon === undefined || rest.length > 0) {
    throw new DroverError('invalid-argument', `the gateway has no daemon ${JSON.stringify(positionals.join(' '))}`, {
      hint: `${daemonUsage}, with one of ${daemons.map((row) => row.name).join(', ')}`,
    });
  }
  return { daemon, runAs: parseUser(values.user, daemonUsage) };
}

function parsing<T>(hint: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new DroverError('invalid-argument', error instanceof Error ? error.message : String(error), { hint, cause: error });
  }
}

function parseUser(text: string | undefined, hint: string): RunAs | undefined {
  if (text === undefined) return undefined;
  const match = /^([1-9]\d{0,8}):([1-9]\d{0,8})$/.exec(text);
  if (match === null) throw new DroverError('invalid-argument', `--user ${text} is not UID:GID, both numbers other than 0`, { hint });
  return { uid: Number(match[1]), gid: Number(match[2]) };
}

/** @returns the exit code */
async function supervisorMain(argv: readonly string[]): Promise<number> {
  return await runProgram(createLogger({ name: 'gateway' }), async (logger, signal) => {
    const command = [process.execPath, ...process.execArgv, '--', process.argv[1] ?? '', 'gateway-daemon'] as const;
    return await runGateway({ ...parseGatewayArguments(argv), daemons, command, logger, signal });
  });
}

/** @returns the exit code */
async function daemonMain(argv: readonly string[]): Promise<number> {
  return await runProgram(createLogger({ name: argv[0] ?? 'gateway-daemon' }), async (logger, signal) => {
    const { daemon, runAs } = parseDaemonArguments(argv);
    const sockets = receiveSockets();
    await daemon.run({
      sockets,
      stateFd: sockets.get('state')?.[0],
      logger,
      signal,
      ready: () => {
        if (runAs !== undefined) dropPrivileges(runAs);
        // Its sockets go with the supervisor: connections that no supervisor accounts for would keep the address.
        connectToSupervisor(process.env).addEventListener('abort', () => process.exit(0));
        logger.info({ uid: process.getuid?.() }, `${daemon.name} is ready`);
      },
    });
    return 0;
  });
}

/** Runs until SIGTERM or SIGINT. An error is in the log. */
async function runProgram(logger: Logger, run: (logger: Logger, signal: AbortSignal) => Promise<number>): Promise<number> {
  const stop = new AbortController();
  const abort = (): void => stop.abort();
  using _signals = onSignals({ SIGTERM: abort, SIGINT: abort });
  try {
    return await run(logger, stop.signal);
  } catch (thrown) {
    const error = DroverError.from(thrown);
    logger.error({ code: error.code, hint: error.hint }, error.message);
    return error.exitCode;
  }
}

/** The code that parses bytes from sandboxes is not root: by now it is loaded, and its sockets are open. */
function dropPrivileges({ uid, gid }: RunAs): void {
  if (process.getuid?.() !== 0) throw new DroverError('missing-privilege', 'only root can run the gateway as another user');
  process.setgroups?.([]);
  process.setgid?.(gid);
  process.setuid?.(uid);
  if (process.getuid() !== uid) throw new DroverError('internal', `the gateway could not become uid ${uid}`);
}
