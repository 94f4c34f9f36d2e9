import { clip, DroverError, parseName, parseProject, type Name, type Project } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import { policyFromWire } from '@drover/protocol/spec';
import {
  maxArgumentBytes,
  maxArguments,
  maxEnvVars,
  maxMounts,
  maxStopGraceMs,
  maxTtlSeconds,
  minMemoryBytes,
  parseImageReference,
  parseLabels,
} from '@drover/spec';
import { defaultRequestCpuMillis, defaultRequestMemoryBytes } from '../../limits.ts';
import type { Room } from '../../model/index.ts';

function invalid(message: string, hint: string): DroverError {
  return new DroverError('invalid-argument', message, { hint });
}

const quote = (text: string): string => JSON.stringify(clip(text));

/** @throws {DroverError} invalid-name */
export function parseIdentity(project: string, name: string): { readonly project: Project; readonly name: Name } {
  return { project: parseProject(project), name: parseName(name) };
}

/** @throws {DroverError} invalid-argument */
export function checkArgv(what: string, argv: readonly string[]): void {
  if (argv.length > maxArguments) throw invalid(`the ${what} has ${argv.length} arguments`, `use at most ${maxArguments}`);
  let bytes = 0;
  for (const argument of argv) {
    if (argument.includes('\0')) throw invalid(`the ${what} has an argument with a NUL in it`, 'no program can be given one');
    bytes += Buffer.byteLength(argument) + 1;
  }
  if (bytes > maxArgumentBytes) throw invalid(`the ${what} has ${bytes} bytes of arguments`, `use at most ${maxArgumentBytes}`);
}

/** @throws {DroverError} invalid-argument */
export function checkEnv(env: readonly sandbox.EnvVar[]): void {
  if (env.length > maxEnvVars) throw invalid(`there are ${env.length} environment variables`, `use at most ${maxEnvVars}`);
  let bytes = 0;
  for (const { name, value } of env) {
    // The value may be a secret: only the name is told.
    if (name === '' || /[=\0]/.test(name)) throw invalid(`${quote(name)} cannot name an environment variable`, 'use letters, digits and _');
    if (value.includes('\0')) throw invalid(`the value of ${quote(name)} holds a NUL`, 'no program can be given one');
    bytes += Buffer.byteLength(name) + Buffer.byteLength(value) + 2;
  }
  if (bytes > maxArgumentBytes) throw invalid(`the environment has ${bytes} bytes`, `use at most ${maxArgumentBytes}`);
}

/** @throws {DroverError} invalid-argument */
export function checkWorkdir(workdir: string): void {
  if (workdir !== '' && (!workdir.startsWith('/') || workdir.includes('\0') || workdir.length > 4096)) {
    throw invalid(`${quote(workdir)} cannot be a working directory`, 'write an absolute path');
  }
}

/** @throws {DroverError} invalid-argument */
export function checkUser(user: string): void {
  if (user !== '' && !/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$/.test(user)) {
    throw invalid(`${quote(user)} cannot be a user`, 'write a name or number, and a group after a colon if you like: 1000:1000');
  }
}

const reservedTargets = ['/proc', '/sys', '/dev', '/.drover'];

function checkMount(mount: sandbox.BindMount): void {
  if (mount.volume !== '') {
    parseName(mount.volume);
    if (mount.source !== '') throw invalid('a mount has both a volume and a source', 'give one of them');
  }
  for (const [what, path] of [...(mount.volume === '' ? [['source', mount.source] as const] : []), ['target', mount.target] as const]) {
    const parts = path.split('/');
    if (!path.startsWith('/') || path.length > 4096 || path.includes('\0') || parts.includes('..') || parts.includes('.')) {
      throw invalid(`${quote(path)} cannot be the ${what} of a mount`, 'write an absolute path without . and ..');
    }
  }
  const target = mount.target.replaceAll(/\/+/g, '/').replace(/\/$/, '');
  if (target === '' || reservedTargets.some((reserved) => target === reserved || target.startsWith(`${reserved}/`))) {
    throw invalid(`nothing can be mounted on ${quote(mount.target)}`, 'choose a directory outside /proc, /sys, /dev and /.drover');
  }
}

const runtimes = ['', 'oci', 'docker', 'microvm', 'fake'];
const hostnamePattern = /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/;

/** Everything about a spec that can be told without a host. @throws {DroverError} invalid-argument, invalid-image-reference */
export function checkSpec(spec: sandbox.SandboxSpec): void {
  parseImageReference(spec.image);
  checkArgv('command', spec.command);
  checkArgv('entrypoint', spec.entrypoint);
  checkEnv(spec.env);
  checkWorkdir(spec.workdir);
  checkUser(spec.user);
  if (spec.hostname !== '' && !hostnamePattern.test(spec.hostname)) {
    throw invalid(`${quote(spec.hostname)} cannot be a hostname`, 'use letters, digits and hyphens, at most 63');
  }
  if (!runtimes.includes(spec.runtime))
    throw invalid(`there is no runtime ${quote(spec.runtime)}`, '`drover host ls` shows the runtimes of the hosts');
  policyFromWire(spec);
  parseLabels(spec.hostLabels);
  if (spec.host.length > 253) throw invalid(`${quote(spec.host)} cannot be a host`, '`drover host ls` lists them');
  if (spec.ttlSeconds > BigInt(maxTtlSeconds))
    throw invalid(`a life of ${spec.ttlSeconds} s is too long`, `use at most ${maxTtlSeconds} s`);
  if (spec.idleStopSeconds > BigInt(maxTtlSeconds))
    throw invalid(`an idle time of ${spec.idleStopSeconds} s is too long`, `use at most ${maxTtlSeconds} s`);
  if (spec.stopGraceMs > maxStopGraceMs) {
    throw invalid(`a grace of ${spec.stopGraceMs} ms is too long`, `use at most ${maxStopGraceMs} ms`);
  }
  if (spec.mounts.length > maxMounts) throw invalid(`there are ${spec.mounts.length} mounts`, `use at most ${maxMounts}`);
  for (const mount of spec.mounts) checkMount(mount);
  checkResources(spec.resources);
}

function checkResources(resources: sandbox.Resources | undefined): void {
  if (resources === undefined) return;
  const { memoryBytes, diskBytes, shmBytes, cpuMillis, pids } = resources;
  if (memoryBytes !== 0n && memoryBytes < BigInt(minMemoryBytes)) {
    throw invalid(`${memoryBytes} bytes of memory are too few to start anything`, `use at least ${minMemoryBytes / 1024 ** 2} MiB`);
  }
  if ([memoryBytes, diskBytes, shmBytes].some((bytes) => bytes > BigInt(Number.MAX_SAFE_INTEGER))) {
    throw invalid('a size is larger than any machine', 'check its unit');
  }
  // What is in /dev/shm is memory of the sandbox.
  if (memoryBytes !== 0n && shmBytes > memoryBytes) {
    throw invalid(`/dev/shm of ${shmBytes} bytes is more than the memory limit of ${memoryBytes}`, 'raise --memory, or lower --shm-size');
  }
  if (cpuMillis > 1_000_000) throw invalid(`${cpuMillis / 1000} CPUs are more than any machine has`, 'check the number');
  // Linux, include/linux/threads.h: PID_MAX_LIMIT.
  if (pids > 4_194_304) throw invalid(`${pids} processes are more than Linux can have`, 'use at most 4194304');
}

/** What placement counts for a sandbox that says nothing. */
export function requestOf(spec: sandbox.SandboxSpec): Room {
  return {
    cpuMillis: spec.resources?.cpuMillis || defaultRequestCpuMillis,
    memoryBytes: Number(spec.resources?.memoryBytes ?? 0n) || defaultRequestMemoryBytes,
    slots: 1,
  };
}
