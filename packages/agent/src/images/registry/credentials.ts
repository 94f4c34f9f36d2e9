import { DroverError } from '@drover/foundation';
import type { ForeignPaths } from '../../foreign/index.ts';
import { maxCredentialsBytes } from '../../limits.ts';
import { askHelper, type Credentials } from './credential-helper.ts';

/**
 * Reads the credentials for a registry from a file of `docker login`. As in Docker, the registry's helper (`credHelpers`) comes before the helper for
 * all registries (`credsStore`), and that before the file itself (`auths`). Read for each pull, so that a login takes effect immediately.
 * @throws {DroverError} invalid-config, registry-denied where a helper fails, unavailable where the file does not respond
 */
export async function readCredentials(
  path: string | undefined,
  registry: string,
  foreign: ForeignPaths,
  signal: AbortSignal,
): Promise<Credentials | undefined> {
  if (path === undefined) return undefined;
  const hint = 'write it with `docker login`, or name another file';
  // A home directory can be on a file system that hangs.
  const text = await foreign.read(path, maxCredentialsBytes);
  if (text === undefined) return undefined;
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new DroverError('invalid-config', `the credentials file ${path} cannot be read`, { hint, cause: error });
  }
  const file = isRecord(parsed) ? parsed : {};
  const names = registry === 'docker.io' ? ['docker.io', 'index.docker.io', 'registry-1.docker.io'] : [registry];
  const of = (table: unknown): [string, unknown][] =>
    isRecord(table) ? Object.entries(table).filter(([key]) => names.includes(hostOf(key))) : [];

  const [own] = of(file['credHelpers']);
  const helper = own?.[1] ?? file['credsStore'];
  if (typeof helper === 'string' && helper !== '') {
    // The name that `docker login` stores Docker Hub's under.
    const server = registry === 'docker.io' ? 'https://index.docker.io/v1/' : registry;
    const known = await askHelper(helper, server, signal);
    if (known !== undefined || own !== undefined) return known;
  }
  for (const [key, fields] of of(file['auths'])) {
    if (!isRecord(fields)) continue;
    const identityToken =
      typeof fields['identitytoken'] === 'string' && fields['identitytoken'] !== '' ? fields['identitytoken'] : undefined;
    if (typeof fields['auth'] === 'string' && fields['auth'] !== '') {
      const decoded = Buffer.from(fields['auth'], 'base64').toString('utf8');
      const colon = decoded.indexOf(':');
      if (colon <= 0) throw new DroverError('invalid-config', `the credentials for ${key} in ${path} are malformed`, { hint });
      return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1).replace(/\0+$/, ''), identityToken };
    }
    if (typeof fields['username'] === 'string' && typeof fields['password'] === 'string') {
      return { username: fields['username'], password: fields['password'], identityToken };
    }
  }
  return undefined;
}

/** The host of a key, which may be a URL. */
function hostOf(key: string): string {
  return key.replace(/^https?:\/\//, '').replace(/\/.*$/, '');
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
