import { readFile } from 'node:fs/promises';
import { DroverError, errnoOf } from '@drover/foundation';

/** What a registry takes from someone it knows. */
export interface Credentials {
  readonly username: string;
  readonly password: string;
  /** A refresh token of an OAuth2 token server, instead of a password. */
  readonly identityToken: string | undefined;
}

/**
 * The credentials for a registry, from a file as `docker login` writes it (`auths`). Read anew for each pull: a login counts at once.
 * @throws {DroverError} invalid-config
 */
export async function readCredentials(path: string | undefined, registry: string): Promise<Credentials | undefined> {
  if (path === undefined) return undefined;
  const hint = 'write it with `docker login`, or name another file';
  let parsed: unknown;
  try {
    parsed = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw new DroverError('invalid-config', `the credentials file ${path} cannot be read`, { hint, cause: error });
  }
  const auths = (parsed as { auths?: unknown } | null)?.auths;
  if (typeof auths !== 'object' || auths === null) return undefined;
  const names = registry === 'docker.io' ? ['docker.io', 'index.docker.io', 'registry-1.docker.io'] : [registry];
  for (const [key, value] of Object.entries(auths as Record<string, unknown>)) {
    const host = key.replace(/^https?:\/\//, '').replace(/\/.*$/, '');
    if (!names.includes(host) || typeof value !== 'object' || value === null) continue;
    const fields = value as Record<string, unknown>;
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
