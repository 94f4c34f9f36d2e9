import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { Client } from '@connectrpc/connect';
import { LogPosition, type api } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';
import { reconnecting } from './reconnecting.ts';

export interface LogsOptions {
  readonly follow?: boolean;
  /** Last lines only; absent or 0 is all that is kept. */
  readonly tailLines?: number;
  /** Output of this time or later only, by the clock of the sandbox's host. */
  readonly since?: Date;
  /** Told each time the connection broke and is being made again. */
  readonly onReconnect?: (error: Error) => void;
  readonly signal?: AbortSignal;
}

/** Output of the main process; a chunk with `droppedBytes` stands for output that is no longer kept. Followed, it goes on after a broken connection behind what was handed out, each byte once. */
export async function* readLogs(
  client: Client<typeof api.SandboxService>,
  calls: Calls,
  sandbox: string,
  { follow = false, tailLines = 0, since, onReconnect, signal }: LogsOptions,
): AsyncGenerator<api.LogChunk, void, undefined> {
  const position = new LogPosition();
  const open = async function* (): AsyncGenerator<api.LogChunk | undefined> {
    position.begin();
    // What was handed out is skipped by its time, so that a later try asks for everything that is kept.
    const tail = BigInt(position.atStart ? tailLines : 0);
    yield* client.logs({ sandbox, follow, tailLines: tail, ...(since && { since: timestampFromDate(since) }) }, withSignal(signal));
    // The end of the process, which is no broken connection.
    yield undefined;
  };
  for await (const chunk of reconnecting(calls, open, { follow, onReconnect, signal })) {
    if (chunk === undefined) return;
    yield* position.fresh([chunk]);
  }
}
