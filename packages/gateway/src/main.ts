import { parseArgs } from 'node:util';
import { DroverError, type Logger } from '@drover/foundation';
import { createLogger } from '@drover/foundation/log';
import { parsePort } from '@drover/spec';
import { formatHost, parseAuthority } from '@drover/spec/policy';
import type { ListenOn } from './egress/index.ts';
import { runGateway } from './gateway.ts';

/** What `drover gateway` was asked to do. */
export interface GatewayArguments {
  readonly controlSocket: string;
  readonly listen: readonly ListenOn[];
  readonly runAs: { readonly uid: number; readonly gid: number } | undefined;
}

/**
 * Parses `--control-socket PATH --listen ADDRESS:PORT… [--user UID:GID]`. With LISTEN_FDS in the environment
 * (sd_listen_fds(3)) the sockets from descriptor 3 on are listened on as well. @throws {DroverError} invalid-argument
 */
export function parseGatewayArguments(argv: readonly string[], env: Readonly<Record<string, string | undefined>>): GatewayArguments {
  let values;
  try {
    ({ values } = parseArgs({
      args: [...argv],
      options: { 'control-socket': { type: 'string' }, listen: { type: 'string', multiple: true }, user: { type: 'string' } },
    }));
  } catch (error) {
    throw new DroverError('invalid-argument', error instanceof Error ? error.message : String(error), { hint: usage, cause: error });
  }
  const controlSocket = values['control-socket'];
  if (controlSocket === undefined) throw new DroverError('invalid-argument', 'no --control-socket is given', { hint: usage });
  const inherited = env['LISTEN_FDS'] === undefined ? 0 : parsePort(env['LISTEN_FDS']);
  const listen: ListenOn[] = Array.from({ length: inherited }, (_, i) => ({ fd: 3 + i }));
  for (const text of values.listen ?? []) {
    // Port 0 asks the kernel for one; tests do.
    const anyPort = text.endsWith(':0');
    const { host, port } = parseAuthority(anyPort ? text.slice(0, -2) : text, anyPort ? 0 : undefined);
    if (host.kind !== 'address')
      throw new DroverError('invalid-argument', `--listen ${text} is not an address and a port`, { hint: usage });
    listen.push({ host: formatHost(host).replace(/^\[|\]$/g, ''), port });
  }
  if (listen.length === 0) throw new DroverError('invalid-argument', 'the gateway has nowhere to listen', { hint: usage });
  return { controlSocket, listen, runAs: values.user === undefined ? undefined : parseUser(values.user) };
}

const usage = 'drover gateway --control-socket PATH --listen ADDRESS:PORT [--user UID:GID]';

function parseUser(text: string): { uid: number; gid: number } {
  const match = /^([1-9]\d{0,8}):([1-9]\d{0,8})$/.exec(text);
  if (match === null)
    throw new DroverError('invalid-argument', `--user ${text} is not UID:GID, both numbers other than 0`, { hint: usage });
  return { uid: Number(match[1]), gid: Number(match[2]) };
}

/**
 * The program `drover gateway`: runs until SIGTERM or SIGINT, or `signal` when the caller gives one.
 * Resolves with the exit code; what went wrong is in the log.
 */
export async function gatewayMain(
  argv: readonly string[],
  options: { readonly logger?: Logger; readonly signal?: AbortSignal } = {},
): Promise<number> {
  const logger = options.logger ?? createLogger({ name: 'gateway' });
  const stop = new AbortController();
  const onSignal = (): void => stop.abort();
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  try {
    const { controlSocket, listen, runAs } = parseGatewayArguments(argv, process.env);
    const signal = options.signal === undefined ? stop.signal : AbortSignal.any([stop.signal, options.signal]);
    await runGateway({ controlSocket, listen, ...(runAs && { runAs }), logger, signal });
    return 0;
  } catch (thrown) {
    const error = DroverError.from(thrown);
    logger.error({ code: error.code, hint: error.hint }, error.message);
    return error.exitCode;
  } finally {
    process.off('SIGTERM', onSignal);
    process.off('SIGINT', onSignal);
  }
}
