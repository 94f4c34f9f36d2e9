import { DroverError, parseName, parseProject } from '@drover/foundation';
import type { CreateOptions, SpecInit } from '@drover/sdk';
import {
  absoluteImageReference,
  killGraceMs,
  maxPids,
  maxStopGraceMs,
  maxTtlSeconds,
  minMemoryBytes,
  parseCount,
  parseCpus,
  parseDurationWithin,
  parseHostname,
  parseMountFlag,
  parseRuntimeName,
  parseUser,
  parseWorkdir,
} from '@drover/spec';
import { parseAllow, parseCommand, parseEnv, parseLabels, parseSize, readEnvFile } from '../../parse.ts';
import { readSecrets, secretNames, type SecretFlags } from './secrets.ts';
import type { SetupFlags } from './setup.ts';
import { terminalSize } from '../../attach.ts';

/** The flags that `run` and `sandbox create` share. */
export interface SpecFlags extends SecretFlags, SetupFlags {
  readonly name?: string;
  readonly project?: string;
  readonly env?: readonly string[];
  readonly envFile?: readonly string[];
  readonly cpus?: string;
  readonly memory?: string;
  readonly disk?: string;
  readonly pids?: string;
  readonly shmSize?: string;
  readonly allow?: readonly string[];
  readonly workdir?: string;
  readonly user?: string;
  readonly label?: readonly string[];
  readonly host?: string;
  readonly hostLabel?: readonly string[];
  readonly runtime?: string;
  readonly ttl?: string;
  readonly idleStop?: string;
  readonly volume?: readonly string[];
  readonly hostname?: string;
  readonly entrypoint?: string;
  readonly stopGrace?: string;
  readonly rm?: boolean;
}

/** Checks every flag before any request, so that a mistake leaves nothing behind. @throws {DroverError} */
export async function createOptions(
  image: string,
  command: readonly string[],
  flags: SpecFlags,
  streams: {
    readonly terminal: boolean;
    readonly stdin: boolean;
    /** The caller's own stdin goes to the command. */
    readonly stdinTaken?: boolean;
  },
): Promise<CreateOptions> {
  const fromFiles = (await Promise.all((flags.envFile ?? []).map(readEnvFile))).flat();
  const env = parseEnv([...fromFiles, ...(flags.env ?? [])], process.env);
  const secretsNamed = secretNames(flags);
  const asksForSetup = flags.setup !== undefined || flags.postInit !== undefined;
  // Loaded by who needs it: what reads YAML and checks it is half of what this command would load.
  const setup = asksForSetup ? (await import('./setup.ts')).readSetupMessage(flags, secretsNamed) : undefined;
  const size = terminalSize();
  const spec: SpecInit = {
    image: absoluteImageReference(image, process.cwd()),
    command: [...parseCommand(command, 'IMAGE', image !== 'host' || flags.entrypoint !== undefined)],
    ...(flags.entrypoint !== undefined && { setEntrypoint: true, entrypoint: flags.entrypoint === '' ? [] : [flags.entrypoint] }),
    env: Object.entries(env).map(([name, value]) => ({ name, value })),
    workdir: parseWorkdir(flags.workdir ?? ''),
    user: parseUser(flags.user ?? ''),
    hostname: parseHostname(flags.hostname ?? ''),
    resources: {
      cpuMillis: flags.cpus === undefined ? 0 : parseCpus(flags.cpus),
      ...sizesOf(flags),
      pids: flags.pids === undefined ? 0 : parseCount('--pids', flags.pids, maxPids),
    },
    terminal: streams.terminal,
    ...(streams.terminal && { terminalRows: size.rows, terminalColumns: size.columns }),
    stdin: streams.stdin,
    allow: await parseAllow(flags.allow ?? []),
    runtime: flags.runtime === undefined ? '' : parseRuntimeName(flags.runtime),
    hostLabels: parseLabels(flags.hostLabel ?? []),
    host: flags.host ?? '',
    removeOnExit: flags.rm === true,
    ttlSeconds: secondsOf('--ttl', flags.ttl),
    idleStopSeconds: secondsOf('--idle-stop', flags.idleStop),
    mounts: (flags.volume ?? []).map((text) => parseMountFlag(text, process.cwd())),
    stopGraceMs: flags.stopGrace === undefined ? 0 : parseStopGrace('--stop-grace', flags.stopGrace),
    ...(setup !== undefined && { setup }),
  };
  // Last: a mistake in a flag is reported before anything is read from stdin.
  const secrets = await readSecrets(flags, { env: process.env, stdin: process.stdin, stdinTaken: streams.stdinTaken === true });
  return {
    spec,
    ...(secrets.length > 0 && { secrets }),
    ...(flags.name !== undefined && { name: parseName(flags.name) }),
    ...(flags.project !== undefined && { project: parseProject(flags.project) }),
    labels: parseLabels(flags.label ?? []),
  };
}

/** At least a second: 0 means no limit on the wire. */
function secondsOf(flag: string, text: string | undefined): bigint {
  if (text === undefined) return 0n;
  return BigInt(Math.max(1, Math.ceil(parseDurationWithin(flag, text, 0, maxTtlSeconds * 1000) / 1000)));
}

/** The grace of a stop. None at all is the least on the wire, where 0 means the default. @throws {DroverError} invalid-argument */
export function parseStopGrace(flag: string, text: string): number {
  return Math.max(killGraceMs, parseDurationWithin(flag, text, 0, maxStopGraceMs));
}

function sizesOf({ memory, disk, shmSize }: SpecFlags): {
  readonly memoryBytes: bigint;
  readonly diskBytes: bigint;
  readonly shmBytes: bigint;
} {
  const memoryBytes = memory === undefined ? 0 : parseSize('--memory', memory, minMemoryBytes);
  const diskBytes = disk === undefined ? 0 : parseSize('--disk', disk);
  const shmBytes = shmSize === undefined ? 0 : parseSize('--shm-size', shmSize);
  // Files in /dev/shm count as memory of the sandbox.
  if (memory !== undefined && shmSize !== undefined && shmBytes > memoryBytes) {
    throw new DroverError(
      'invalid-argument',
      `--shm-size ${JSON.stringify(shmSize)} is more than the memory limit, --memory ${JSON.stringify(memory)}`,
      {
        hint: 'raise --memory, or lower --shm-size',
      },
    );
  }
  return { memoryBytes: BigInt(memoryBytes), diskBytes: BigInt(diskBytes), shmBytes: BigInt(shmBytes) };
}
