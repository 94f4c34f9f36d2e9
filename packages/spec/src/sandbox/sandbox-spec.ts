import {
  parseArguments,
  parseEnvironment,
  parseUser,
  parseWorkdir,
  type EnvironmentVariable,
  type User,
  type Workdir,
} from '../command.ts';
import { parseImageReference, type ImageReference } from '../image-reference.ts';
import { invalid, quote } from '../invalid.ts';
import { parseLabels, type Labels } from '../labels.ts';
import { defaultStopGraceMs, maxMounts, maxStopGraceMs, maxTtlSeconds } from '../limits.ts';
import { parseMount, type Mount, type MountInput } from '../mounts.ts';
import { parseHostname, parseRuntimeName, type Hostname, type RuntimeName } from '../names.ts';
import { parseSandboxPolicy, type Policy, type PolicyInput } from '../policy/index.ts';
import { parseResources, type Resources, type ResourcesInput } from './resources.ts';

/** What a person asks of one sandbox. Its secrets and its setup have parsers of their own. */
export interface SandboxSpec {
  readonly image: ImageReference;
  /** Empty: the image's Cmd. */
  readonly command: readonly string[];
  /** Undefined: the image's Entrypoint. */
  readonly entrypoint: readonly string[] | undefined;
  readonly env: readonly EnvironmentVariable[];
  readonly workdir: Workdir;
  readonly user: User;
  readonly hostname: Hostname;
  readonly resources: Resources;
  readonly policy: Policy;
  /** Undefined: any. */
  readonly runtime: RuntimeName | undefined;
  /** Of the hosts that it may be placed on. */
  readonly hostLabels: Labels;
  /** A host's id or name; empty: any. */
  readonly host: string;
  /** 0: none. */
  readonly ttlSeconds: number;
  /** 0: never. */
  readonly idleStopSeconds: number;
  readonly mounts: readonly Mount[];
  readonly stopGraceMs: number;
  /** The size of the main process's terminal; undefined: it has none. */
  readonly terminal: { readonly rows: number; readonly columns: number } | undefined;
  /** The main process's stdin stays open for attach. */
  readonly stdin: boolean;
}

/** A specification as it is written on the wire. */
export interface SandboxSpecInput extends PolicyInput {
  readonly image: string;
  readonly command: readonly string[];
  readonly entrypoint: readonly string[];
  readonly setEntrypoint: boolean;
  readonly env: readonly EnvironmentVariable[];
  readonly workdir: string;
  readonly user: string;
  readonly hostname: string;
  readonly resources?: ResourcesInput | undefined;
  readonly runtime: string;
  readonly hostLabels: Labels;
  readonly host: string;
  readonly ttlSeconds: bigint;
  readonly idleStopSeconds: bigint;
  readonly mounts: readonly MountInput[];
  /** 0: the default. */
  readonly stopGraceMs: number;
  readonly terminal: boolean;
  /** 0: the default. */
  readonly terminalRows: number;
  readonly terminalColumns: number;
  readonly stdin: boolean;
}

const maxHostLength = 253;

/** @throws {DroverError} invalid-argument, invalid-name, invalid-image-reference, unimplemented */
export function parseSandboxSpec(input: SandboxSpecInput): SandboxSpec {
  const { host, mounts } = input;
  if (host.length > maxHostLength) throw invalid(`${quote(host)} cannot be a host`, '`drover host ls` lists them');
  if (mounts.length > maxMounts) throw invalid(`there are ${mounts.length} mounts`, `use at most ${maxMounts}`);
  const entrypoint = parseArguments('entrypoint', input.entrypoint);
  return {
    image: parseImageReference(input.image),
    command: parseArguments('command', input.command),
    entrypoint: input.setEntrypoint ? entrypoint : undefined,
    env: parseEnvironment(input.env),
    workdir: parseWorkdir(input.workdir),
    user: parseUser(input.user),
    hostname: parseHostname(input.hostname),
    resources: parseResources(input.resources),
    policy: parseSandboxPolicy(input),
    runtime: input.runtime === '' ? undefined : parseRuntimeName(input.runtime),
    hostLabels: parseLabels(input.hostLabels),
    host,
    ttlSeconds: parseSeconds('a life', input.ttlSeconds),
    idleStopSeconds: parseSeconds('an idle time', input.idleStopSeconds),
    mounts: mounts.map(parseMount),
    stopGraceMs: parseStopGraceMs(input.stopGraceMs) || defaultStopGraceMs,
    terminal: input.terminal ? { rows: input.terminalRows || 24, columns: input.terminalColumns || 80 } : undefined,
    stdin: input.stdin,
  };
}

/** The grace of a stop in milliseconds; 0: the sandbox's own. @throws {DroverError} invalid-argument */
export function parseStopGraceMs(graceMs: number): number {
  if (graceMs <= maxStopGraceMs) return graceMs;
  throw invalid(`a grace of ${graceMs} ms is too long`, `use at most ${maxStopGraceMs} ms`);
}

function parseSeconds(what: string, seconds: bigint): number {
  if (seconds <= BigInt(maxTtlSeconds)) return Number(seconds);
  throw invalid(`${what} of ${seconds} s is too long`, `use at most ${maxTtlSeconds} s`);
}
