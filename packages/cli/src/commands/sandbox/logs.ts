import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { Cli } from '../../cli.ts';
import { parseCount } from '../../parse.ts';
import { sayBroken } from './reconnect.ts';

export interface LogsFlags {
  readonly follow?: boolean;
  readonly tail?: string;
}

const maxTail = 1_000_000_000;

/** The main process's output, as it wrote it: stdout to stdout, stderr to stderr. With -o json a record a chunk. */
export default async function logs(cli: Cli, [reference]: readonly [string], flags: LogsFlags): Promise<void> {
  const tailLines = flags.tail === undefined || flags.tail === 'all' ? undefined : parseCount('--tail', flags.tail, maxTail);
  const client = await cli.connect();
  const chunks = client.sandboxes.logs(reference, {
    follow: flags.follow === true,
    onReconnect: sayBroken(cli),
    ...(tailLines !== undefined && { tailLines }),
    signal: cli.signal,
  });
  for await (const chunk of chunks) {
    const stream = chunk.stderr ? 'stderr' : 'stdout';
    if (cli.out.json) {
      cli.out.record({
        stream,
        time: chunk.time === undefined ? null : timestampDate(chunk.time).toISOString(),
        data: Buffer.from(chunk.data).toString('utf8'),
      });
    } else {
      await cli.out.bytes(chunk.data, stream);
    }
  }
}
