import { readFile, mkdir } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { DroverError, errnoOf, writeFileAtomic } from '@drover/foundation';
import type { ConnectionFlags } from '../cli.ts';

/** Where the control plane is and how to be let in: written by `up`, 0600. */
export interface Context {
  /** `https://host:port`. */
  readonly server: string;
  readonly token: string;
  /** The CA that the server's certificate must come from; absent trusts the system's. */
  readonly caPem?: string;
}

/** `$XDG_CONFIG_HOME/drover/context.json`, or below `~/.config`. */
export function contextPath(env: NodeJS.ProcessEnv): string {
  const base = env['XDG_CONFIG_HOME'];
  return join(base !== undefined && base.startsWith('/') ? base : join(env['HOME'] ?? homedir(), '.config'), 'drover', 'context.json');
}

export async function saveContext(env: NodeJS.ProcessEnv, context: Context): Promise<string> {
  const path = contextPath(env);
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  await writeFileAtomic(path, `${JSON.stringify(context, undefined, 2)}\n`, 0o600);
  return path;
}

/**
 * The connection from the flags, else DROVER_SERVER, DROVER_TOKEN and DROVER_CA (a path), else the context file.
 * A server that is named gets only what is named with it: the file's token and CA are the file's server's.
 * @throws {DroverError} failed-precondition when nothing says where, invalid-config when what says it is wrong
 */
export async function loadContext(env: NodeJS.ProcessEnv, flags: ConnectionFlags): Promise<Context> {
  const server = flags.server ?? nonEmpty(env['DROVER_SERVER']);
  const token = flags.token ?? nonEmpty(env['DROVER_TOKEN']);
  const ca = flags.ca ?? nonEmpty(env['DROVER_CA']);
  const caPem = ca === undefined ? undefined : await readCa(ca);
  const file = await readContext(contextPath(env));
  const sameServer = server === undefined || (file !== undefined && parseServer(server) === file.server);
  const known = sameServer ? file : undefined;
  const resolved = server === undefined ? known?.server : parseServer(server);
  if (resolved === undefined) {
    throw new DroverError('failed-precondition', 'no control plane is known', {
      hint: 'start one with ./drover up, or name one with --server and --token',
    });
  }
  const resolvedToken = token ?? known?.token;
  if (resolvedToken === undefined) {
    throw new DroverError('unauthenticated', `there is no token for ${resolved}`, { hint: 'give one with --token or DROVER_TOKEN' });
  }
  const resolvedCa = caPem ?? known?.caPem;
  return { server: resolved, token: resolvedToken, ...(resolvedCa !== undefined && { caPem: resolvedCa }) };
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
    pem = await readFile(path, 'utf8');
  } catch (error) {
    throw new DroverError('invalid-config', `the CA file ${path} cannot be read (${errnoOf(error) ?? 'unreadable'})`, {
      hint: "name the control plane's CA with --ca: pki/ca.pem in its data directory",
      cause: error,
    });
  }
  if (!pem.includes('-----BEGIN CERTIFICATE-----')) {
    throw new DroverError('invalid-config', `${path} holds no certificate`, { hint: 'give a PEM file with --ca or DROVER_CA' });
  }
  return pem;
}

async function readContext(path: string): Promise<Context | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw new DroverError('invalid-config', `${path} cannot be read (${errnoOf(error) ?? 'unreadable'})`, {
      hint: 'put it right or take it away; ./drover up writes it anew',
      cause: error,
    });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw broken(path, error);
  }
  if (typeof value !== 'object' || value === null) throw broken(path);
  const { server, token, caPem } = value as Record<string, unknown>;
  if (typeof server !== 'string' || typeof token !== 'string' || (caPem !== undefined && typeof caPem !== 'string')) throw broken(path);
  return { server, token, ...(caPem !== undefined && { caPem }) };
}

function broken(path: string, cause?: unknown): DroverError {
  return new DroverError('invalid-config', `${path} is not a context file`, { hint: 'remove it; ./drover up writes a new one', cause });
}
