import { existsSync } from 'node:fs';
import { access, constants, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { clip, DroverError, errnoOf, makeDirectories, reasonOf, writeFileAtomic } from '@drover/foundation';
import { searchPath } from '@drover/linux';
import { isRegistry, maxStandbys, parseCpus, parseDurationWithin, parseHostName, parseLabel } from '@drover/spec';
import { z } from 'zod';
import { maxReconnectMaxMs, minReconnectMaxMs } from '../limits.ts';

/** The settings of this host, from the flags of `up`, `agent` and `agent join`. */
export interface HostSettings {
  readonly name?: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly zone?: string;
  /** The IPv4 network from which its sandboxes have their addresses. */
  readonly pool?: string;
  /** The CPUs that it offers, in thousandths. */
  readonly cpuMillis?: number;
  /** runc, crun, or a path. */
  readonly runtimeProgram?: string;
  /** Directories that sandboxes may mount. */
  readonly allowedMounts?: readonly string[];
  /** The longest delay between two attempts to reach the control plane (L-12). Milliseconds. */
  readonly reconnectMaxMs?: number;
  /** The number of standbys. */
  readonly standbys?: number;
  /** HOST:PORT of the control plane's link, if it has changed since the join. */
  readonly linkAddress?: string;
  /** Settings of registries. */
  readonly registries?: RegistrySettings;
}

export interface RegistrySettings {
  /** Registries, HOST or HOST:PORT, that may use plain HTTP or an unverifiable certificate. */
  readonly insecureRegistries?: readonly string[];
  /** By the host of a registry, the mirrors that are tried first. */
  readonly mirrors?: Readonly<Record<string, readonly string[]>>;
  /** A file in the format of `docker login`. */
  readonly credentialsFile?: string;
}

/** The flags of `up`, `agent` and `agent join` that configure the host. */
export interface HostFlags {
  readonly name?: string;
  readonly label?: readonly string[];
  readonly zone?: string;
  readonly pool?: string;
  readonly cpus?: string;
  readonly runtimeProgram?: string;
  readonly allowMount?: readonly string[];
  readonly reconnectMax?: string;
  readonly standbys?: string;
  readonly link?: string;
  readonly insecureRegistry?: readonly string[];
  readonly registryMirror?: readonly string[];
  readonly registryCredentials?: string;
}

const file = (stateDirectory: string): string => join(stateDirectory, 'host.json');

/**
 * Checks the flags before anything is created or saved: a saved flag applies to every later start.
 * @throws {DroverError} invalid-argument, invalid-config, missing-component
 */
export async function checkHostFlags(flags: HostFlags): Promise<void> {
  if (flags.name !== undefined) parseHostName(flags.name);
  for (const label of flags.label ?? []) parseLabel(label);
  parseRegistries(flags);
  parseReconnectMax(flags);
  parseStandbys(flags);
  parseLink(flags);
  if (flags.cpus !== undefined) parseCpus(flags.cpus);
  if (flags.pool !== undefined) (await import('@drover/agent/network')).checkPool(flags.pool);
  if (flags.runtimeProgram !== undefined) checkProgram(flags.runtimeProgram);
  if (flags.registryCredentials !== undefined) await checkReadable('--registry-credentials', resolve(flags.registryCredentials));
}

/** @throws {DroverError} missing-component */
function checkProgram(program: string): void {
  const places = program.includes('/')
    ? [resolve(program)]
    : searchPath()
        .split(':')
        .map((directory) => join(directory, program));
  if (places.some((path) => existsSync(path))) return;
  throw new DroverError('missing-component', `--runtime-program ${JSON.stringify(clip(program))} is not installed`, {
    hint: 'name runc, crun, or the path of a program',
  });
}

/** @throws {DroverError} invalid-argument */
async function checkReadable(flag: string, path: string): Promise<void> {
  try {
    await access(path, constants.R_OK);
  } catch (error) {
    throw new DroverError('invalid-argument', `${flag} ${path} cannot be read: ${reasonOf(error)}`, {
      hint: 'name a readable file',
      cause: error,
    });
  }
}

/** L-12. @throws {DroverError} invalid-argument */
function parseReconnectMax({ reconnectMax }: HostFlags): { readonly reconnectMaxMs?: number } {
  if (reconnectMax === undefined) return {};
  return { reconnectMaxMs: parseDurationWithin('--reconnect-max', reconnectMax, minReconnectMaxMs, maxReconnectMaxMs) };
}

/** @throws {DroverError} invalid-argument */
function parseStandbys({ standbys }: HostFlags): { readonly standbys?: number } {
  if (standbys === undefined) return {};
  const count = Number(standbys);
  if (/^\d{1,4}$/.test(standbys) && count <= maxStandbys) return { standbys: count };
  throw new DroverError('invalid-argument', `--standbys ${JSON.stringify(clip(standbys))} is not a number of sandboxes to keep ready`, {
    hint: `give 0 to ${maxStandbys}`,
  });
}

/** @throws {DroverError} invalid-argument */
function parseLink({ link }: HostFlags): { readonly linkAddress?: string } {
  if (link === undefined) return {};
  if (/^(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[1-9]\d{0,4}$/.test(link) && Number(link.replace(/^.*:/, '')) <= 65_535)
    return { linkAddress: link };
  throw new DroverError('invalid-argument', `--link ${JSON.stringify(clip(link))} is not the address of a host link`, {
    hint: 'write HOST:PORT, such as control-plane.example.com:7444',
  });
}

/** @throws {DroverError} invalid-argument */
function parseRegistries(flags: HostFlags): RegistrySettings {
  const mirrors: Record<string, string[]> = {};
  for (const entry of flags.registryMirror ?? []) {
    const [, registry, mirror] = /^([^=]+)=(.+)$/.exec(entry) ?? [];
    if (registry === undefined || mirror === undefined || !isRegistry(registry) || !URL.canParse(withScheme(mirror))) {
      throw new DroverError('invalid-argument', `${JSON.stringify(clip(entry))} is not a mirror of a registry`, {
        hint: 'write REGISTRY=MIRROR, such as docker.io=mirror.example.com:5000',
      });
    }
    (mirrors[registry] ??= []).push(mirror);
  }
  for (const host of flags.insecureRegistry ?? []) {
    if (isRegistry(host)) continue;
    throw new DroverError('invalid-argument', `${JSON.stringify(clip(host))} is not the host of a registry`, {
      hint: 'write HOST or HOST:PORT, without scheme or path',
    });
  }
  return {
    ...(flags.insecureRegistry !== undefined && { insecureRegistries: flags.insecureRegistry }),
    ...(flags.registryMirror !== undefined && { mirrors }),
    ...(flags.registryCredentials !== undefined && { credentialsFile: resolve(flags.registryCredentials) }),
  };
}

const withScheme = (mirror: string): string => (/^https?:\/\//.test(mirror) ? mirror : `https://${mirror}`);

/** Saves the given flags; all other settings keep their saved values. @throws {DroverError} */
export async function saveHostSettings(stateDirectory: string, flags: HostFlags): Promise<void> {
  await checkHostFlags(flags);
  const registries = parseRegistries(flags);
  const given: Partial<HostSettings> = {
    ...(flags.name !== undefined && { name: flags.name }),
    ...(flags.label !== undefined && { labels: Object.fromEntries(flags.label.map(parseLabel)) }),
    ...(flags.zone !== undefined && { zone: flags.zone }),
    ...(flags.pool !== undefined && { pool: flags.pool }),
    ...(flags.cpus !== undefined && { cpuMillis: parseCpus(flags.cpus) }),
    ...(flags.runtimeProgram !== undefined && { runtimeProgram: flags.runtimeProgram }),
    ...(flags.allowMount !== undefined && { allowedMounts: flags.allowMount.map((path) => resolve(path)) }),
    ...parseReconnectMax(flags),
    ...parseStandbys(flags),
    ...parseLink(flags),
  };
  if (Object.keys(given).length === 0 && Object.keys(registries).length === 0) return;
  const kept = await loadHostSettings(stateDirectory);
  const settings: HostSettings = { ...kept, ...given, registries: { ...kept.registries, ...registries } };
  await makeDirectories(stateDirectory, 0o711);
  await writeFileAtomic(file(stateDirectory), `${JSON.stringify(settings, undefined, 2)}\n`, 0o600);
}

const schema = z.object({
  name: z.string().optional(),
  labels: z.record(z.string(), z.string()).default({}),
  zone: z.string().optional(),
  pool: z.string().optional(),
  cpuMillis: z.int().positive().optional(),
  runtimeProgram: z.string().optional(),
  allowedMounts: z.array(z.string()).optional(),
  reconnectMaxMs: z.number().optional(),
  standbys: z.int().nonnegative().optional(),
  linkAddress: z.string().optional(),
  registries: z
    .object({
      insecureRegistries: z.array(z.string()).optional(),
      mirrors: z.record(z.string(), z.array(z.string())).optional(),
      credentialsFile: z.string().optional(),
    })
    .optional(),
});

/** @throws {DroverError} invalid-config */
export async function loadHostSettings(stateDirectory: string): Promise<HostSettings> {
  let text: string;
  try {
    text = await readFile(file(stateDirectory), 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return { labels: {} };
    throw new DroverError(DroverError.from(error, 'invalid-config').code, `${file(stateDirectory)} cannot be read: ${reasonOf(error)}`, {
      hint: 'make it readable, or choose another directory with --state',
      cause: error,
    });
  }
  try {
    // The type requires absent properties instead of undefined ones.
    return JSON.parse(JSON.stringify(schema.parse(JSON.parse(text)))) as HostSettings;
  } catch (error) {
    throw new DroverError('invalid-config', `${file(stateDirectory)} cannot be read`, {
      hint: 'move it away, and repeat --name, --label and the other flags',
      cause: error,
    });
  }
}
