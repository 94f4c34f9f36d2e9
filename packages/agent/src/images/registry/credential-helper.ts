import { spawn } from 'node:child_process';
import { DroverError, errnoOf, reasonOf } from '@drover/foundation';
import { credentialHelperMs, maxCredentialBytes } from '../../limits.ts';

/** A login at a registry. */
export interface Credentials {
  readonly username: string;
  readonly password: string;
  /** A refresh token of an OAuth2 token server, instead of a password. */
  readonly identityToken: string | undefined;
}

/** A helper's error for an unknown server. Source: docker-credential-helpers, credentials/error.go. */
const notFound = /credentials not found in native keychain/;
/** The user name that stands for "the secret is an identity token". Source: docker/cli, config/credentials/native_store.go. */
const tokenUser = '<token>';

/**
 * Queries a Docker credential helper (`docker-credential-NAME get`, the server's name on its stdin).
 * Source: the docker-credential-helpers protocol.
 * @throws {DroverError} invalid-config, missing-component, registry-denied
 */
export async function askHelper(name: string, server: string, signal: AbortSignal): Promise<Credentials | undefined> {
  if (!/^[\w.-]+$/.test(name)) {
    throw new DroverError('invalid-config', `${JSON.stringify(name)} is no name of a credential helper`, {
      hint: 'in the credentials file, write the part of the program name after docker-credential-',
    });
  }
  const program = `docker-credential-${name}`;
  const { code, answer } = await ask(program, server, signal);
  // Where it fails, the reason is on its stdout.
  if (code !== 0) {
    if (notFound.test(answer)) return undefined;
    const [reason = ''] = answer.trim().split('\n');
    throw failed(program, server, reason === '' ? `it ended with status ${code ?? 'unknown'}` : reason.slice(0, 200));
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(answer);
  } catch {
    // No cause: the parser's error may quote a secret.
    throw failed(program, server, 'its answer is not JSON');
  }
  const { Username: username, Secret: secret } = (parsed ?? {}) as { Username?: unknown; Secret?: unknown };
  if (typeof username !== 'string' || typeof secret !== 'string') throw failed(program, server, 'its answer has no Username and Secret');
  if (username === tokenUser) return { username: '', password: '', identityToken: secret };
  return username === '' ? undefined : { username, password: secret, identityToken: undefined };
}

/** Runs the helper, bounded in time and output. */
async function ask(program: string, server: string, signal: AbortSignal): Promise<{ code: number | null; answer: string }> {
  const limit = AbortSignal.timeout(credentialHelperMs);
  const { promise, resolve, reject } = Promise.withResolvers<{ code: number | null; answer: string }>();
  // A process group, so that the helper's own processes end with it.
  const helper = spawn(program, ['get'], { stdio: ['pipe', 'pipe', 'ignore'], detached: true });
  const end = (): void => {
    // Without a pid it could not be started; ESRCH: it has ended.
    if (helper.pid !== undefined) ignoringGone(() => process.kill(-(helper.pid as number), 'SIGKILL'));
    reject(signal.aborted ? signal.reason : failed(program, server, `it did not finish in ${credentialHelperMs / 1000} s`));
  };
  const chunks: Buffer[] = [];
  let size = 0;
  helper.stdout.on('data', (chunk: Buffer) => {
    size += chunk.length;
    if (size <= maxCredentialBytes) chunks.push(chunk);
    else {
      reject(failed(program, server, `its answer has more than ${maxCredentialBytes} bytes`));
      end();
    }
  });
  helper.on('error', (cause) => {
    const missing = errnoOf(cause) === 'ENOENT';
    const message = missing ? `there is no program ${program} on this host` : `${program} cannot be started: ${reasonOf(cause)}`;
    reject(
      new DroverError('missing-component', message, {
        hint: "install it in the agent's PATH, or take its name from the credentials file",
        cause,
      }),
    );
  });
  helper.on('close', (code) => resolve({ code, answer: Buffer.concat(chunks).toString('utf8') }));
  // A helper may end without reading its input.
  helper.stdin.on('error', () => undefined).end(server);
  const either = AbortSignal.any([limit, signal]);
  either.addEventListener('abort', end, { once: true });
  if (either.aborted) end();
  try {
    return await promise;
  } finally {
    either.removeEventListener('abort', end);
  }
}

function ignoringGone(act: () => void): void {
  try {
    act();
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH') throw error;
  }
}

function failed(program: string, server: string, reason: string): DroverError {
  return new DroverError('registry-denied', `${program} returned no credentials for ${server}: ${reason}`, {
    hint: `run \`echo ${server} | ${program} get\` as the agent's user, or log in again`,
  });
}
