import { chmod, mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, isHostId, newHostId, parseHostId, reasonOf, writeFileAtomic, type HostId } from '@drover/foundation';
import { z } from 'zod';

/** This host's identity, from its last join or renewal. */
export interface HostIdentity {
  readonly hostId: HostId;
  readonly trustDomain: string;
  /** host:port of the link. */
  readonly linkAddress: string;
  /** From the join token. */
  readonly labels: Readonly<Record<string, string>>;
  /** PKCS #8, PEM. It never leaves this machine (L-2). */
  readonly keyPem: string;
  readonly certificatePem: string;
  readonly caPem: string;
}

const identityDirectory = 'identity';
const idFile = 'host-id';
/** Key, certificate and CA in one file, so that a crash never leaves a key beside another's certificate. */
const identityFile = 'identity.json';

/**
 * The id of this host, made at first use and stored before anything is sent (L-7): a join whose response was lost is repeated with
 * the same one.
 * @param wanted from the configuration; must equal the stored id, if there is one
 * @throws {DroverError} invalid-config
 */
export async function ensureHostId(stateDir: string, wanted?: HostId): Promise<HostId> {
  const directory = await ensureDirectory(stateDir);
  const stored = await readIfThere(join(directory, idFile));
  if (stored === undefined) {
    const id = wanted ?? newHostId();
    await writeFileAtomic(join(directory, idFile), `${id}\n`, 0o600);
    return id;
  }
  const id = stored.trim();
  if (!isHostId(id) || (wanted !== undefined && wanted !== id)) {
    throw new DroverError('invalid-config', `${join(directory, idFile)} does not hold ${wanted ?? 'a host id'}`, {
      hint: 'use another state directory with --state',
    });
  }
  return id;
}

/** Undefined before the first join. @throws {DroverError} invalid-config */
export async function loadIdentity(stateDir: string): Promise<HostIdentity | undefined> {
  const path = join(stateDir, identityDirectory, identityFile);
  const content = await readIfThere(path);
  return content === undefined ? undefined : parse(content, path);
}

export async function saveIdentity(stateDir: string, identity: HostIdentity): Promise<void> {
  const directory = await ensureDirectory(stateDir);
  await writeFileAtomic(join(directory, identityFile), `${JSON.stringify({ version: 1, ...identity }, undefined, 2)}\n`, 0o600);
}

/** Removes id, key and certificate of a removed host (L-4), so that a later join makes another host. */
export async function forgetIdentity(stateDir: string): Promise<void> {
  await rm(join(stateDir, identityDirectory), { recursive: true, force: true });
}

async function ensureDirectory(stateDir: string): Promise<string> {
  const directory = join(stateDir, identityDirectory);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  await chmod(directory, 0o700);
  return directory;
}

const text = z.string().min(1);
const identitySchema = z.object({
  hostId: text.transform(parseHostId),
  trustDomain: text,
  linkAddress: text,
  labels: z.record(z.string(), z.string()),
  keyPem: text,
  certificatePem: text,
  caPem: text,
});

function parse(content: string, path: string): HostIdentity {
  try {
    return identitySchema.parse(JSON.parse(content));
  } catch (cause) {
    if (cause instanceof DroverError) throw cause;
    throw new DroverError('invalid-config', `${path} cannot be read as a host's identity`, {
      hint: 'join again with `drover agent join`',
      cause,
    });
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(errnoOf(error) ?? '')) return undefined;
    throw new DroverError(DroverError.from(error, 'invalid-config').code, `${path} cannot be read: ${reasonOf(error)}`, {
      hint: 'make it readable, or choose another directory with --state',
      cause: error,
    });
  }
}

/** The identity in use: read by every new connection, replaced by a renewal. */
export class CredentialsStore {
  readonly #stateDir: string;
  #identity: HostIdentity;

  constructor(stateDir: string, identity: HostIdentity) {
    this.#stateDir = stateDir;
    this.#identity = identity;
  }

  /** @throws {DroverError} failed-precondition before the first join; invalid-config */
  static async open(stateDir: string): Promise<CredentialsStore> {
    const identity = await loadIdentity(stateDir);
    if (identity === undefined) {
      throw new DroverError('failed-precondition', 'this host has not joined a control plane', {
        hint: 'run `drover host token` there and `drover agent join URL --token TOKEN` here',
      });
    }
    return new CredentialsStore(stateDir, identity);
  }

  get current(): HostIdentity {
    return this.#identity;
  }

  /** On disk before it is used. */
  async replace(renewed: Pick<HostIdentity, 'keyPem' | 'certificatePem' | 'caPem'>): Promise<void> {
    const next = { ...this.#identity, ...renewed };
    await saveIdentity(this.#stateDir, next);
    this.#identity = next;
  }
}
