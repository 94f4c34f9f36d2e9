import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt';
import { readLog } from '@drover/init';
import { link } from '@drover/protocol';

/**
 * The kept output of a sandbox's main process, oldest first, as fast as it is read. The files are written inside the sandbox: links are not
 * followed, sizes are bounded, and a line that is not a record is passed over.
 */
export async function* keptLogs(
  runDirectory: string,
  { tailLines, since }: link.HostLogs,
  signal: AbortSignal,
): AsyncGenerator<MessageInitShape<typeof link.HostStreamMessageSchema>, void, undefined> {
  const sinceMs = since === undefined ? 0 : timestampMs(since);
  for await (const entry of readLog({ directory: runDirectory, tailLines: Number(tailLines), sinceMs, signal })) {
    const { stderr, time, data, offset, droppedBytes } = entry;
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
