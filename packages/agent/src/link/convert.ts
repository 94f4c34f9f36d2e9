import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt';
import { DroverError, parseSandboxId } from '@drover/foundation';
import type { LogEntry } from '@drover/init';
import { link } from '@drover/protocol';
import type { ImageInfo } from '../images/index.ts';
import {
  receiveSpec,
  type CopyPart,
  type CreateCommand,
  type LogOptions,
  type SandboxCommand,
  type SandboxEvent,
  type SandboxStats,
  type StartCommand,
} from '../sandboxes/index.ts';

/** @throws {DroverError} invalid-argument when it names no sandbox */
export function commandOf(ref: link.SandboxRef | undefined): SandboxCommand {
  return { id: parseSandboxId(ref?.sandboxId ?? ''), generation: Number(ref?.generation ?? 0n) };
}

export function startOf({ sandbox, networkCut, registrationClosed, secrets }: Omit<link.StartSandbox, '$typeName'>): StartCommand {
  return { ...commandOf(sandbox), networkCut, registrationClosed, secrets };
}

/** @throws {DroverError} protocol-violation when it has no spec; invalid-argument and others when it cannot be */
export function createOf(command: link.CreateSandbox): CreateCommand {
  const { project, name, spec } = command;
  if (spec === undefined) throw new DroverError('protocol-violation', 'the create command holds no spec');
  return { ...startOf(command), project, name, spec: receiveSpec(spec) };
}

export function logOptionsOf({ tailLines, since }: link.HostLogs): LogOptions {
  return { tailLines: Number(tailLines), sinceMs: since === undefined ? 0 : timestampMs(since) };
}

export async function* logsToWire(entries: AsyncIterable<LogEntry>): AsyncGenerator<CopyPart, void, undefined> {
  for await (const { stderr, time, data, offset, droppedBytes } of entries) {
    const value = {
      stream: stderr ? link.LogRecord_Stream.STDERR : link.LogRecord_Stream.STDOUT,
      time: timestampFromMs(time),
      data,
      offset: BigInt(Math.max(0, offset)),
      droppedBytes: BigInt(droppedBytes),
    };
    yield { message: { case: 'log', value } };
  }
}

export function statsToWire(stats: readonly SandboxStats[]): MessageInitShape<typeof link.StatsSchema> {
  const sandboxes = stats.map(({ id, cpuUsec, memoryBytes, pids, at }) => ({
    sandboxId: id,
    cpuUsec: BigInt(cpuUsec),
    memoryBytes: BigInt(memoryBytes),
    pids,
    at: timestampFromMs(at),
  }));
  return { sandboxes };
}

export function imageToWire(image: ImageInfo): MessageInitShape<typeof link.ImageSchema> {
  return {
    reference: image.reference,
    digest: image.digest,
    sizeBytes: BigInt(image.sizeBytes),
    pulledAt: timestampFromMs(image.pulledAt),
    lastUsedAt: timestampFromMs(image.lastUsedAt),
    sandboxes: image.holders,
  };
}

export function eventToWire({ id, at, event }: SandboxEvent): MessageInitShape<typeof link.HostEventSchema> {
  return { sandboxId: id, at: timestampFromMs(at), event };
}
