import { mkdir, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { DroverError, errnoOf, parseLabel, writeFileAtomic } from '@drover/foundation';
import { z } from 'zod';

/** What this host was told about itself when it joined. */
export interface HostSettings {
  readonly name?: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly zone?: string;
  /** Addresses for its sandboxes, an IPv4 network. */
  readonly pool?: string;
  /** runc, crun, or a path. */
  readonly runtimeProgram?: string;
  /** Directories that sandboxes may mount. */
  readonly allowedMounts?: readonly string[];
}

/** The flags of `up`, `agent` and `agent join` that say how the host is to be. */
export interface HostFlags {
  readonly name?: string;
  readonly label?: readonly string[];
  readonly zone?: string;
  readonly pool?: string;
  readonly runtimeProgram?: string;
  readonly allowMount?: readonly string[];
}

const file = (stateDirectory: string): string => join(stateDirectory, 'host.json');

/** Keeps what is given, and what was kept before of the rest. @throws {DroverError} */
export async function saveHostSettings(stateDirectory: string, flags: HostFlags): Promise<void> {
  const given: Partial<HostSettings> = {
    ...(flags.name !== undefined && { name: flags.name }),
    ...(flags.label !== undefined && { labels: Object.fromEntries(flags.label.map(parseLabel)) }),
    ...(flags.zone !== undefined && { zone: flags.zone }),
    ...(flags.pool !== undefined && { pool: flags.pool }),
    ...(flags.runtimeProgram !== undefined && { runtimeProgram: flags.runtimeProgram }),
    ...(flags.allowMount !== undefined && { allowedMounts: flags.allowMount.map((path) => resolve(path)) }),
  };
  if (Object.keys(given).length === 0) return;
  const settings: HostSettings = { ...(await loadHostSettings(stateDirectory)), ...given };
  await mkdir(stateDirectory, { recursive: true, mode: 0o711 });
  await writeFileAtomic(file(stateDirectory), `${JSON.stringify(settings, undefined, 2)}\n`, 0o600);
}

const schema = z.object({
  name: z.string().optional(),
  labels: z.record(z.string(), z.string()).default({}),
  zone: z.string().optional(),
  pool: z.string().optional(),
  runtimeProgram: z.string().optional(),
  allowedMounts: z.array(z.string()).optional(),
});

/** @throws {DroverError} invalid-config */
export async function loadHostSettings(stateDirectory: string): Promise<HostSettings> {
  let text: string;
  try {
    text = await readFile(file(stateDirectory), 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return { labels: {} };
    throw DroverError.from(error);
  }
  try {
    // An absent property, not one that is undefined, is what the type says.
    return JSON.parse(JSON.stringify(schema.parse(JSON.parse(text)))) as HostSettings;
  } catch (error) {
    throw new DroverError('invalid-config', `${file(stateDirectory)} cannot be read`, {
      hint: 'move it away, and give --name, --label and the others again',
      cause: error,
    });
  }
}
