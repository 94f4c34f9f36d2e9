import { readFile } from 'node:fs/promises';
import { errnoOf, writeFileAtomic, type SandboxId } from '@drover/foundation';
import type { SandboxState } from '../backend.ts';
import type { ContainerRequest } from './container.ts';

/** The record of a container or a standby on disk, for the next agent. */
export interface ContainerRecord {
  readonly version: 1;
  /** `creating`: the runtime program has not finished, and a crash leaves a sandbox that was never made. `starting`: the same at a later start. */
  readonly phase: 'creating' | 'starting' | 'started' | 'ended';
  /** The uid range; undefined without a user namespace. */
  readonly slot: number | undefined;
  /** The id of the runtime program and the cgroups, where it differs: that of the standby that the sandbox was made from. */
  readonly container?: SandboxId;
  readonly pid: number | undefined;
  /** Start time of `pid` in clock ticks since boot (proc(5), stat field 22): a pid alone may be reused. */
  readonly pidStart: string | undefined;
  readonly address: string;
  readonly runDirectory: string;
  readonly startedAt: number | undefined;
  readonly finishedAt: number | undefined;
  readonly exitCode: number | undefined;
  /** Absent in records of earlier agents. */
  readonly exitSignal?: string;
  readonly outOfMemory: boolean;
  readonly startFailure: string | undefined;
  /** Absent in records of earlier agents. */
  readonly idle?: boolean;
  readonly unrecorded?: boolean;
}

/** Undefined: absent or unreadable, and the sandbox is a leftover. */
export async function readRecord(path: string): Promise<ContainerRecord | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(path, 'utf8'));
    if (typeof value !== 'object' || value === null || !('version' in value) || value.version !== 1) return undefined;
    // Only this module writes it, in a directory that only root can write to.
    return value as ContainerRecord;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR' || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/**
 * A crash of the agent leaves the record whole. Not synced: after a crash of the machine no sandbox runs, and an unreadable record makes its
 * sandbox a leftover, which is swept.
 */
export async function writeRecord(path: string, record: ContainerRecord): Promise<void> {
  await writeFileAtomic(path, JSON.stringify(record), { sync: false });
}

export function emptyRecord(request: ContainerRequest, slot: number | undefined): ContainerRecord {
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

export function stateOf(record: ContainerRecord): SandboxState {
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

/** The runtime program had not finished when the record was written. */
export function isUnderWay(record: ContainerRecord): boolean {
  return record.phase === 'creating' || record.phase === 'starting';
}
