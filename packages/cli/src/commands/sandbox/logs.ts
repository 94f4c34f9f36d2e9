import { timestampDate } from '@bufbuild/protobuf/wkt';
import { clip, DroverError, formatBytes } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { parseCount, parseDurationMs } from '@drover/spec';
import type { Cli } from '../../cli.ts';
import { OutputText } from '../../output/index.ts';
import { noteReconnects } from './reconnect.ts';

export interface LogsFlags {
  readonly follow?: boolean;
  readonly tail?: string;
  readonly since?: string;
}

const maxTail = 1_000_000_000;

/**
 * Prints the main process's output byte for byte: stdout to stdout, stderr to stderr. Dropped output is noted on stderr. With -o json each
 * chunk is a record; bytes that are not UTF-8 are in `dataBase64`, and dropped output is a record with `droppedBytes`.
 */
export default async function logs(cli: Cli, [reference]: readonly [string], flags: LogsFlags): Promise<void> {
  const tailLines = flags.tail === undefined || flags.tail === 'all' ? undefined : parseTail(flags.tail);
  const sinceFlag = flags.since === undefined ? undefined : parseSince(flags.since, Date.now());
  const client = await cli.connect();
  if (tailLines === 0 && flags.follow !== true) {
    await client.sandboxes.get(reference, cli.signal);
    return;
  }
  // In the API, 0 lines means all lines.
  const since = tailLines === 0 ? new Date() : sinceFlag;
  const chunks = client.sandboxes.logs(reference, {
    follow: flags.follow === true,
    onReconnect: noteReconnects(cli),
    ...(tailLines !== undefined && tailLines > 0 && { tailLines }),
    ...(since !== undefined && { since }),
    signal: cli.signal,
  });
  const records = new LogRecords(cli);
  for await (const chunk of chunks) {
    if (cli.out.json) records.take(chunk);
    else if (chunk.droppedBytes > 0n) cli.out.note(droppedText(Number(chunk.droppedBytes)));
    else await cli.out.bytes(chunk.data, chunk.stderr ? 'stderr' : 'stdout');
  }
  records.end();
}

/** Exported for its tests. @throws {DroverError} invalid-argument */
export function parseTail(text: string): number {
  return text === '0' ? 0 : parseCount('--tail', text, maxTail);
}

function droppedText(bytes: number): string {
  return `${formatBytes(bytes)} (${bytes} bytes) of earlier output were dropped: a sandbox's log is bounded`;
}

/** `10m` ago, or a time: `2026-11-29T10:00:00Z`. @throws {DroverError} invalid-argument */
export function parseSince(text: string, nowMs: number): Date {
  if (/^\d{4}-\d\d-\d\d/.test(text)) {
    const at = new Date(text);
    if (!Number.isNaN(at.getTime())) return at;
  }
  try {
    return new Date(nowMs - parseDurationMs(text));
  } catch (error) {
    throw new DroverError('invalid-argument', `--since ${JSON.stringify(clip(text))} is neither a time nor a duration`, {
      hint: 'write a duration such as 10m, or a time such as 2026-11-29T10:00:00Z',
      cause: error,
    });
  }
}

class LogRecords {
  readonly #cli: Cli;
  readonly #texts = { stdout: new OutputText(), stderr: new OutputText() };
  #time: string | null = null;

  constructor(cli: Cli) {
    this.#cli = cli;
  }

  take({ stderr, data, time, droppedBytes }: api.LogChunk): void {
    this.#time = time === undefined ? null : timestampDate(time).toISOString();
    if (droppedBytes > 0n) {
      this.end();
      this.#cli.out.record({ droppedBytes: Number(droppedBytes), time: this.#time });
      return;
    }
    const stream = stderr ? 'stderr' : 'stdout';
    const text = this.#texts[stream].take(data);
    if (text !== undefined) this.#cli.out.record({ stream, time: this.#time, ...text });
  }

  end(): void {
    for (const stream of ['stdout', 'stderr'] as const) {
      const rest = this.#texts[stream].end();
      if (rest !== undefined) this.#cli.out.record({ stream, time: this.#time, ...rest });
    }
  }
}
