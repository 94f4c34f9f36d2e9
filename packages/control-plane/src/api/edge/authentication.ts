import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createContextKey, type ContextValues } from '@connectrpc/connect';
import { DroverError, errnoOf, writeFileAtomic } from '@drover/foundation';
import { hashSecret } from '@drover/pki';
import type { TokenStore } from '../../store/index.ts';

/** The caller: the name of its token, and the token itself, from which secrets are derived. Never logged. */
export interface Caller {
  readonly name: string;
  readonly token: string;
}

export const callerKey = createContextKey<Caller | undefined>(undefined, { description: 'the authenticated caller' });

/** The caller of an authenticated method. */
export function callerOf(values: ContextValues): Caller {
  const caller = values.get(callerKey);
  if (caller === undefined) throw new DroverError('unauthenticated', 'this call needs an API token');
  return caller;
}

const tokenPattern = /^drvt_[A-Za-z0-9_-]{43}$/;

export function newApiToken(): string {
  return `drvt_${randomBytes(32).toString('base64url')}`;
}

/**
 * Checks a bearer token against the hashes in the store. Only hashes are compared, so that the time of a comparison reveals nothing about a
 * token.
 * @throws {DroverError} unauthenticated
 */
export async function authenticate(tokens: TokenStore, authorization: string | null): Promise<Caller> {
  const refuse = (why: string): DroverError =>
    new DroverError('unauthenticated', why, {
      hint: 'the first token is in the file admin-token of the server’s data directory; pass it with --token or $DROVER_TOKEN',
    });
  if (authorization === null || authorization === '') throw refuse('this call carries no API token');
  const token = /^bearer +(\S+)$/i.exec(authorization)?.[1];
  if (token === undefined || !tokenPattern.test(token)) throw refuse('this is not an API token');
  const found = await tokens.findApi(hashSecret(token));
  if (found === undefined) throw refuse('the server does not know this API token');
  return { name: found.name, token };
}

/**
 * The admin's token, created at the first start in `<directory>/admin-token`, which only its owner can read. An existing file has precedence:
 * its token is added to a store that lacks it.
 * @throws {DroverError} invalid-config when the file holds anything else (I-28)
 */
export async function openAdminToken(directory: string, tokens: TokenStore): Promise<string> {
  const path = join(directory, 'admin-token');
  let token: string | undefined;
  try {
    token = (await readFile(path, 'utf8')).trim();
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') {
      throw new DroverError('invalid-config', `the admin token in ${path} cannot be read`, {
        hint: 'change the owner of the file to the user that runs the server',
        cause: error,
      });
    }
  }
  if (token === undefined) {
    token = newApiToken();
    // The file first: after a crash in between, the next start adds the token to the store.
    await writeFileAtomic(path, `${token}\n`, 0o600);
  } else if (!tokenPattern.test(token)) {
    throw new DroverError('invalid-config', `${path} contains no API token`, {
      hint: 'move the file away; the next start creates another one',
    });
  }
  const hash = hashSecret(token);
  if ((await tokens.findApi(hash)) === undefined) await tokens.createApi({ hash, name: 'admin' });
  return token;
}
