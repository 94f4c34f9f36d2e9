import { readdir, readFile, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { clip, DroverError, errnoOf, makeDirectories, reasonOf, writeFileAtomic } from '@drover/foundation';
import { maxContexts } from '../limits.ts';

/** A control plane's address and credentials. */
export interface Context {
  /** `https://host:port`. */
  readonly server: string;
  readonly token: string;
  /** The CA that issued the server's certificate, PEM. Absent: the system's CAs. */
  readonly caPem?: string;
  /** The data directory of the `up` on this machine that made the context. */
  readonly data?: string;
}

export interface NamedContext extends Context {
  readonly name: string;
}

/** The context of `context.json`, which earlier versions wrote. */
const legacyName = 'default';
const contextName = /^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$/;

/** `$XDG_CONFIG_HOME/drover`, or below `~/.config`. */
function directoryOf(env: NodeJS.ProcessEnv): string {
  const base = env['XDG_CONFIG_HOME'];
  return join(base !== undefined && base.startsWith('/') ? base : join(env['HOME'] ?? homedir(), '.config'), 'drover');
}

/** Each context has its own file, so that programs that save contexts concurrently lose none. */
const fileOf = (env: NodeJS.ProcessEnv, name: string): string => join(directoryOf(env), 'contexts', `${name}.json`);
const legacyFile = (env: NodeJS.ProcessEnv): string => join(directoryOf(env), 'context.json');
const currentFile = (env: NodeJS.ProcessEnv): string => join(directoryOf(env), 'current-context');

/** @throws {DroverError} invalid-argument */
export function parseContextName(text: string): string {
  if (contextName.test(text)) return text;
  throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} cannot be the name of a context`, {
    hint: 'use at most 64 letters, digits, dots, hyphens and underscores',
  });
}

/** All contexts, sorted by name. @throws {DroverError} invalid-config when one cannot be read */
export async function listContexts(env: NodeJS.ProcessEnv): Promise<readonly NamedContext[]> {
  const contexts: NamedContext[] = [];
  for (const name of await contextNames(env)) {
    const context = await readContext(env, name);
    if (context !== undefined) contexts.push({ name, ...context });
  }
  return contexts;
}

/** The names of all contexts, sorted. */
export async function contextNames(env: NodeJS.ProcessEnv): Promise<readonly string[]> {
  const files = await readdir(dirname(fileOf(env, legacyName))).catch(ignoringAbsence<string[]>([]));
  const names = new Set(files.filter((file) => file.endsWith('.json')).map((file) => file.slice(0, -'.json'.length)));
  if ((await read(legacyFile(env))) !== undefined) names.add(legacyName);
  return [...names].filter((name) => contextName.test(name)).toSorted();
}

/** @returns undefined if no context has this name @throws {DroverError} invalid-config */
export async function readContext(env: NodeJS.ProcessEnv, name: string): Promise<Context | undefined> {
  const file = fileOf(env, name);
  const text = await read(file);
  if (text !== undefined) return parse(file, text);
  if (name !== legacyName) return undefined;
  const legacy = await read(legacyFile(env));
  return legacy === undefined ? undefined : parse(legacyFile(env), legacy);
}

/** The name of the current context; undefined if none is chosen. */
export async function currentContext(env: NodeJS.ProcessEnv): Promise<string | undefined> {
  const chosen = (await read(currentFile(env)))?.trim();
  if (chosen !== undefined) return contextName.test(chosen) ? chosen : undefined;
  return (await read(legacyFile(env))) === undefined ? undefined : legacyName;
}

/** @throws {DroverError} failed-precondition at the limit of contexts */
export async function saveContext(env: NodeJS.ProcessEnv, { name, server, token, caPem, data }: NamedContext): Promise<void> {
  const names = await contextNames(env);
  if (!names.includes(name) && names.length >= maxContexts) {
    throw new DroverError('failed-precondition', `there are already ${names.length} contexts, the most that are allowed`, {
      hint: 'remove some with drover context rm',
    });
  }
  const file = fileOf(env, name);
  await makeDirectories(dirname(file), 0o700);
  await writeFileAtomic(file, `${JSON.stringify({ server, token, caPem, data }, undefined, 2)}\n`, 0o600);
}

/** Makes a context the current one. */
export async function useContext(env: NodeJS.ProcessEnv, name: string): Promise<void> {
  await makeDirectories(directoryOf(env), 0o700);
  await writeFileAtomic(currentFile(env), `${name}\n`, 0o600);
}

export async function removeContext(env: NodeJS.ProcessEnv, name: string): Promise<void> {
  await rm(fileOf(env, name), { force: true });
  if (name === legacyName) await rm(legacyFile(env), { force: true });
  if ((await read(currentFile(env)))?.trim() === name) await rm(currentFile(env), { force: true });
}

/** The context name for a control plane: its existing context's, matched by CA or address, or else a new name. */
export function nameFor(contexts: readonly NamedContext[], { server, caPem }: Context): string {
  const known = contexts.find((context) => caPem !== undefined && context.caPem?.trim() === caPem.trim());
  const same = known ?? contexts.find((context) => context.server === server);
  if (same !== undefined) return same.name;
  const taken = new Set(contexts.map(({ name }) => name));
  for (let count = 1; ; count++) {
    const name = count === 1 ? 'local' : `local-${count}`;
    if (!taken.has(name)) return name;
  }
}

async function read(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined;
    throw new DroverError('invalid-config', `${path} cannot be read: ${reasonOf(error)}`, {
      hint: 'make it readable, or remove it',
      cause: error,
    });
  }
}

function ignoringAbsence<T>(absent: T): (error: unknown) => T {
  return (error) => {
    if (errnoOf(error) === 'ENOENT') return absent;
    throw DroverError.from(error);
  };
}

function parse(path: string, text: string): Context {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw broken(path, error);
  }
  if (typeof value !== 'object' || value === null) throw broken(path);
  const { server, token, caPem, data } = value as Record<string, unknown>;
  if (typeof server !== 'string' || typeof token !== 'string' || (caPem !== undefined && typeof caPem !== 'string')) throw broken(path);
  return { server, token, ...(caPem !== undefined && { caPem }), ...(typeof data === 'string' && { data }) };
}

function broken(path: string, cause?: unknown): DroverError {
  return new DroverError('invalid-config', `${path} is not a context file`, { hint: 'remove it; drover up writes a new one', cause });
}
