import { DroverError, readAtMost, reasonOf } from '@drover/foundation';
import type { ConnectionFlags } from '../cli.ts';
import { maxConfigFileBytes } from '../limits.ts';
import { contextNames, currentContext, parseContextName, readContext, type Context, type NamedContext } from './store.ts';

/**
 * Finds the control plane to use: --server, then --context, then DROVER_SERVER, then DROVER_CONTEXT, then the current context. A context's
 * token and CA are only used for its own server; --token and --ca, then DROVER_TOKEN and DROVER_CA, take precedence over them. The three
 * variables belong together: if --context overrides DROVER_SERVER, the other two are ignored as well.
 * @throws {DroverError} failed-precondition when no control plane is named, context-not-found, invalid-config when a file is wrong, invalid-argument
 */
export async function loadContext(env: NodeJS.ProcessEnv, flags: ConnectionFlags): Promise<Context> {
  if (flags.server !== undefined && flags.context !== undefined) {
    throw new DroverError('invalid-argument', '--server and --context exclude each other', { hint: 'leave one of them out' });
  }
  const ownServer = nonEmpty(env['DROVER_SERVER']);
  const isOverridden = flags.context !== undefined && ownServer !== undefined;
  const server = flags.server ?? (flags.context === undefined ? ownServer : undefined);
  const token = flags.token ?? (isOverridden ? undefined : nonEmpty(env['DROVER_TOKEN']));
  const ca = flags.ca ?? (isOverridden ? undefined : nonEmpty(env['DROVER_CA']));
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
    throw new DroverError('unauthenticated', `no token for ${resolved}`, { hint: 'pass it with --token or DROVER_TOKEN' });
  }
  const resolvedCa = caPem ?? known?.caPem;
  return {
    server: resolved,
    token: resolvedToken,
    ...(resolvedCa !== undefined && { caPem: resolvedCa }),
    ...(known?.data !== undefined && { data: known.data }),
  };
}

/** The chosen context, unless a flag or variable names another server. */
async function contextOfServer(
  env: NodeJS.ProcessEnv,
  flags: ConnectionFlags,
  server: string | undefined,
): Promise<NamedContext | undefined> {
  const chosen = await chosenContext(env, flags);
  return server === undefined || parseServer(server) === chosen?.server ? chosen : undefined;
}

/** Adds the context's name, and the names of other contexts, to the error of an unreachable control plane. */
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
    hint: names.length === 0 ? 'drover up and drover context add create contexts' : `the contexts are ${names.join(', ')}`,
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
      hint: 'check that it is the right file',
    });
  }
  if (!pem.includes('-----BEGIN CERTIFICATE-----')) {
    throw new DroverError('invalid-config', `${path} contains no certificate`, { hint: 'name a PEM file with --ca or DROVER_CA' });
  }
  return pem;
}
