import { DroverError, readAtMost, reasonOf } from '@drover/foundation';
import type { ConnectionFlags } from '../cli.ts';
import { maxConfigFileBytes } from '../limits.ts';
import { contextNames, currentContext, parseContextName, readContext, type Context, type NamedContext } from './store.ts';

/**
 * The connection: a server that is named by --server, else the context that --context names, else DROVER_SERVER, else DROVER_CONTEXT,
 * else the current context. The token and the CA of a context go to its own server alone; --token and --ca, else DROVER_TOKEN and
 * DROVER_CA, go before them. The three variables belong together: where --context sets DROVER_SERVER aside, the other two go with it.
 * @throws {DroverError} failed-precondition when nothing names one, context-not-found, invalid-config when a file is wrong, invalid-argument
 */
export async function loadContext(env: NodeJS.ProcessEnv, flags: ConnectionFlags): Promise<Context> {
  if (flags.server !== undefined && flags.context !== undefined) {
    throw new DroverError('invalid-argument', '--server and --context name two control planes', { hint: 'leave out one of them' });
  }
  const ownServer = nonEmpty(env['DROVER_SERVER']);
  const isSetAside = flags.context !== undefined && ownServer !== undefined;
  const server = flags.server ?? (flags.context === undefined ? ownServer : undefined);
  const token = flags.token ?? (isSetAside ? undefined : nonEmpty(env['DROVER_TOKEN']));
  const ca = flags.ca ?? (isSetAside ? undefined : nonEmpty(env['DROVER_CA']));
  const caPem = ca === undefined ? undefined : await readCa(ca);
  const known = await contextOfServer(env, flags, server);
  const resolved = server === undefined ? known?.server : parseServer(server);
  if (resolved === undefined) {
    throw new DroverError('failed-precondition', 'no control plane is known', {
      hint: 'start one with drover up, choose one with drover context use, or name one with --server and --token',
    });
  }
  const resolvedToken = token ?? known?.token;
  if (resolvedToken === undefined) {
    throw new DroverError('unauthenticated', `there is no token for ${resolved}`, { hint: 'give one with --token or DROVER_TOKEN' });
  }
  const resolvedCa = caPem ?? known?.caPem;
  return {
    server: resolved,
    token: resolvedToken,
    ...(resolvedCa !== undefined && { caPem: resolvedCa }),
    ...(known?.data !== undefined && { data: known.data }),
  };
}

/** The chosen context, where it is of the server that a flag or a variable names. */
async function contextOfServer(
  env: NodeJS.ProcessEnv,
  flags: ConnectionFlags,
  server: string | undefined,
): Promise<NamedContext | undefined> {
  const kept = await chosenContext(env, flags);
  return server === undefined || parseServer(server) === kept?.server ? kept : undefined;
}

/** The error of a control plane that cannot be reached, with the name of its context, and with how to find the others. */
export async function withContextName(error: DroverError, env: NodeJS.ProcessEnv, flags: ConnectionFlags): Promise<DroverError> {
  const server = flags.server ?? (flags.context === undefined ? nonEmpty(env['DROVER_SERVER']) : undefined);
  const context = await contextOfServer(env, flags, server);
  const others = (await contextNames(env)).filter((name) => name !== context?.name);
  if (context === undefined && others.length === 0) return error;
  const hints = [error.hint, others.length > 0 ? `other contexts exist: ${others.join(', ')} (drover context ls)` : undefined];
  return new DroverError(error.code, context === undefined ? error.message : `${error.message} (context ${context.name})`, {
    hint: hints.filter((hint) => hint !== undefined && hint !== '').join('; '),
    cause: error,
  });
}

async function chosenContext(env: NodeJS.ProcessEnv, flags: ConnectionFlags): Promise<NamedContext | undefined> {
  const named = flags.context ?? nonEmpty(env['DROVER_CONTEXT']);
  if (named !== undefined) return await findContext(env, named);
  const current = await currentContext(env);
  if (current === undefined) return undefined;
  const context = await readContext(env, current);
  return context === undefined ? undefined : { name: current, ...context };
}

/** @throws {DroverError} context-not-found */
export async function findContext(env: NodeJS.ProcessEnv, text: string): Promise<NamedContext> {
  const name = parseContextName(text);
  const context = await readContext(env, name);
  if (context !== undefined) return { name, ...context };
  const names = await contextNames(env);
  throw new DroverError('context-not-found', `there is no context ${JSON.stringify(name)}`, {
    hint: names.length === 0 ? 'drover up makes one, and drover context add' : `contexts that exist: ${names.join(', ')}`,
  });
}

function nonEmpty(text: string | undefined): string | undefined {
  return text === '' ? undefined : text;
}

/** `host`, `host:port` or a URL, to `https://host:port`. @throws {DroverError} invalid-argument */
export function parseServer(text: string): string {
  const withScheme = /^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `https://${text}`;
  const url = URL.parse(withScheme);
  if (
    url === null ||
    url.protocol !== 'https:' ||
    url.hostname === '' ||
    url.username !== '' ||
    !['', '/'].includes(url.pathname) ||
    url.search !== ''
  ) {
    throw new DroverError('invalid-argument', `${JSON.stringify(text)} is not the address of a control plane`, {
      hint: 'write https://HOST:PORT, such as https://127.0.0.1:7443',
    });
  }
  const port = /:\d+\/?$/.exec(withScheme) === null ? '7443' : url.port === '' ? '443' : url.port;
  return `https://${url.hostname}:${port}`;
}

async function readCa(path: string): Promise<string> {
  let pem: string;
  try {
    pem = (await readAtMost(path, maxConfigFileBytes)).toString('utf8');
  } catch (error) {
    throw new DroverError('invalid-config', `the CA file ${path} cannot be read: ${reasonOf(error)}`, {
      hint: "name the control plane's CA with --ca: pki/ca.pem in its data directory",
      cause: error,
    });
  }
  if (Buffer.byteLength(pem) > maxConfigFileBytes) {
    throw new DroverError('invalid-config', `the CA file ${path} is larger than ${maxConfigFileBytes} bytes`, {
      hint: 'is it the right file?',
    });
  }
  if (!pem.includes('-----BEGIN CERTIFICATE-----')) {
    throw new DroverError('invalid-config', `${path} holds no certificate`, { hint: 'give a PEM file with --ca or DROVER_CA' });
  }
  return pem;
}
