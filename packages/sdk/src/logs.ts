import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { Client } from '@connectrpc/connect';
import { LogPosition, type api } from '@drover/protocol';
import { optionsOf, type Calls } from './calls.ts';
import { reconnecting } from './reconnecting.ts';

export interface LogsOptions {
  readonly follow?: boolean;
  /** Only the last lines; absent or 0: everything that is retained. */
  readonly tailLines?: number;
  /** Output of this time or later only, by the clock of the sandbox's host. */
  readonly since?: Date;
  /** Called each time the connection has broken, before the next attempt. */
  readonly onReconnect?: (error: Error) => void;
  readonly signal?: AbortSignal;
}

/**
 * Output of the main process. A chunk with `droppedBytes` stands for output that is no longer retained. A follower goes on after a broken
 * connection, and receives each byte once.
 */
export async function* readLogs(
  client: Client<typeof api.SandboxService>,
  calls: Calls,
  sandbox: string,
  { follow = false, tailLines = 0, since, onReconnect, signal }: LogsOptions,
): AsyncGenerator<api.LogChunk, void, undefined> {
  const position = new LogPosition();
  const open = async function* (): AsyncGenerator<api.LogChunk | undefined> {
    position.begin();
    // A later try asks for everything that is retained, and skips by its time what was delivered.
    const tail = BigInt(position.atStart ? tailLines : 0);
    yield* client.logs({ sandbox, follow, tailLines: tail, ...(since && { since: timestampFromDate(since) }) }, optionsOf(signal));
    // Marks the end of the process, which is not a broken connection.
    yield undefined;
  };
  for await (const chunk of reconnecting(calls, open, { follow, onReconnect, signal })) {
    if (chunk === undefined) return;
    yield* position.fresh([chunk]);
  }
}
