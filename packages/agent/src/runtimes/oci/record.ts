import { randomBytes } from 'node:crypto';
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { errnoOf, type SandboxId } from '@drover/foundation';
import type { CreateRequest, RuntimeState } from '../runtime.ts';

/** What is kept on disk of a sandbox, so that the next agent knows what this one knew. */
export interface SandboxRecord {
  readonly version: 1;
  /** Creating: the runtime program has not answered yet; a crash here leaves a sandbox that was never made. Starting: the same, of one that has ended before. */
  readonly phase: 'creating' | 'starting' | 'started' | 'ended';
  /** The uid range; undefined without a user namespace. */
  readonly slot: number | undefined;
  /** Under which id the runtime program and the cgroups know it, where it is another than its own: it was a standby before. */
  readonly container?: SandboxId;
  readonly pid: number | undefined;
  /** Start time of `pid` in clock ticks since boot (proc(5), stat field 22): a pid alone may come back as another process. */
  readonly pidStart: string | undefined;
  readonly address: string;
  readonly runDirectory: string;
  readonly startedAt: number | undefined;
  readonly finishedAt: number | undefined;
  readonly exitCode: number | undefined;
  /** Absent in records of an agent that did not know of it. */
  readonly exitSignal?: string;
  readonly outOfMemory: boolean;
  readonly startFailure: string | undefined;
  /** Absent in records of an agent that did not know of it. */
  readonly idle?: boolean;
  readonly unrecorded?: boolean;
}

/** Undefined when there is none, or none that can be read: then the sandbox is a leftover. */
export async function readRecord(path: string): Promise<SandboxRecord | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(path, 'utf8'));
    if (typeof value !== 'object' || value === null || !('version' in value) || value.version !== 1) return undefined;
    // Written by this module alone, in a directory that only root can write to.
    return value as SandboxRecord;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR' || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/**
 * Whole or not at all for a crash of the agent. Not synced: after a crash of the machine no sandbox runs, and a record that
 * cannot be read makes its sandbox a leftover, which is swept.
 */
export async function writeRecord(path: string, record: SandboxRecord): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    await writeFile(temporary, JSON.stringify(record), { mode: 0o600, flag: 'wx' });
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

export function emptyRecord(request: CreateRequest, slot: number | undefined): SandboxRecord {
  return {
    version: 1,
    phase: 'creating',
    slot,
    pid: undefined,
    pidStart: undefined,
    address: request.network.address,
    runDirectory: request.runDirectory,
    startedAt: undefined,
    finishedAt: undefined,
    exitCode: undefined,
    outOfMemory: false,
    startFailure: undefined,
  };
}

export function stateOf(record: SandboxRecord): RuntimeState {
  return {
    phase: 'ended',
    pid: undefined,
    exitCode: record.exitCode,
    exitSignal: record.exitSignal ?? '',
    outOfMemory: record.outOfMemory,
    startedAt: record.startedAt,
    finishedAt: record.finishedAt,
    ...(record.startFailure === undefined ? {} : { startFailure: record.startFailure }),
    ...(record.idle === true ? { idle: true } : {}),
    ...(record.unrecorded === true ? { unrecorded: true } : {}),
  };
}

/** The runtime program was at it when this was written. */
export function isUnderWay(record: SandboxRecord): boolean {
  return record.phase === 'creating' || record.phase === 'starting';
}
