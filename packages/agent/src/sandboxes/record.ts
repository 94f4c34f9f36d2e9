import { create, fromJson, toJson } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { FileRecords, isSandboxId, type Logger, type SandboxId } from '@drover/foundation';
import { sandbox, sandboxStates } from '@drover/protocol';
import { z } from 'zod';
import { receiveSpec, type ReceivedSpec } from './received-spec.ts';
import type { CreateCommand } from './sandboxes.ts';

export const phases = ['preparing', 'starting', 'running', 'paused', 'stopping', 'stopped', 'failed'] as const;
export type Phase = (typeof phases)[number];

/** The agent's record of a sandbox, on disk as `<id>.json`. The backend keeps its own. */
export interface SandboxRecord {
  readonly id: SandboxId;
  readonly project: string;
  readonly name: string;
  readonly spec: ReceivedSpec;
  readonly runtime: string;
  /** The generation of the desired state that was last carried out. */
  readonly generation: number;
  readonly phase: Phase;
  readonly reason: string;
  readonly message: string;
  /** What a person can do about the message; empty for nothing. */
  readonly hint: string;
  readonly exitCode: number | undefined;
  /** The name of the signal that ended its command; empty: none. */
  readonly exitSignal: string;
  readonly outOfMemory: boolean;
  /** Kills for want of memory in this run that were reported as events. */
  readonly oomKills: number;
  readonly startedAt: number | undefined;
  readonly finishedAt: number | undefined;
  readonly startCount: number;
  readonly imageDigest: string;
  readonly address: string;
  /** The network is cut while it runs (I-4). */
  readonly networkCut: boolean;
  /** The registration port is closed to it while it runs (I-4). */
  readonly registrationClosed: boolean;
  /** The boot of the host in which it was last started (random/boot_id); empty in records of earlier agents. */
  readonly bootId: string;
  readonly sequence: number;
}

/** The record of a sandbox that is to be made. */
export function newRecord(command: CreateCommand, runtime: string): SandboxRecord {
  const { id, project, name, spec, generation, networkCut, registrationClosed } = command;
  return {
    id,
    project,
    name,
    spec,
    runtime,
    generation,
    phase: 'preparing',
    reason: '',
    message: '',
    hint: '',
    exitCode: undefined,
    exitSignal: '',
    outOfMemory: false,
    oomKills: 0,
    startedAt: undefined,
    finishedAt: undefined,
    startCount: 0,
    imageDigest: '',
    address: '',
    networkCut,
    registrationClosed,
    bootId: '',
    sequence: 0,
  };
}

const recordFile = z.object({
  version: z.literal(1),
  id: z.string().refine(isSandboxId),
  project: z.string(),
  name: z.string(),
  spec: z.json(),
  runtime: z.string(),
  generation: z.number(),
  phase: z.enum(phases),
  reason: z.string(),
  message: z.string(),
  // Records of earlier agents lack it.
  hint: z.string().default(''),
  exitCode: z.number().optional(),
  // Records of earlier agents lack it.
  exitSignal: z.string().default(''),
  outOfMemory: z.boolean(),
  // Records of earlier agents lack it.
  oomKills: z.number().default(0),
  startedAt: z.number().optional(),
  finishedAt: z.number().optional(),
  startCount: z.number(),
  imageDigest: z.string(),
  address: z.string(),
  // Records of earlier agents lack them.
  networkCut: z.boolean().default(false),
  registrationClosed: z.boolean().default(false),
  bootId: z.string().default(''),
  sequence: z.number(),
});

/**
 * The records of a host's sandboxes. Not synced: a power cut ends the sandboxes too. A sandbox whose record cannot be read is swept and made
 * again.
 */
export function sandboxRecords(directory: string, logger: Logger): FileRecords<SandboxRecord> {
  return new FileRecords<SandboxRecord>({
    directory,
    key: ({ id }) => id,
    parse: (value) => {
      const { version: _, spec, exitCode, startedAt, finishedAt, ...rest } = recordFile.parse(value);
      return { ...rest, spec: receiveSpec(fromJson(sandbox.SandboxSpecSchema, spec)), exitCode, startedAt, finishedAt };
    },
    format: (record) => ({ version: 1, ...record, spec: toJson(sandbox.SandboxSpecSchema, record.spec.message) }),
    sync: false,
    logger,
  });
}

/** The record as it is reported to the control plane. */
export function observationOf(record: SandboxRecord): sandbox.SandboxObservation {
  const observation = create(sandbox.SandboxObservationSchema, {
    sandboxId: record.id,
    generation: BigInt(record.generation),
    state: sandboxStates.value(record.phase),
    reason: record.reason,
    message: record.message,
    hint: record.hint,
    exitSignal: record.exitSignal,
    outOfMemory: record.outOfMemory,
    address: record.address,
    networkCut: record.networkCut,
    registrationClosed: record.registrationClosed,
    startCount: BigInt(record.startCount),
    imageDigest: record.imageDigest,
    runtime: record.runtime,
    sequence: BigInt(record.sequence),
  });
  const { resources } = record.spec.message;
  if (resources !== undefined) observation.resources = resources;
  if (record.exitCode !== undefined) observation.exitCode = record.exitCode;
  if (record.startedAt !== undefined) observation.startedAt = timestampFromMs(record.startedAt);
  if (record.finishedAt !== undefined) observation.finishedAt = timestampFromMs(record.finishedAt);
  return observation;
}
