import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { errnoOf } from '@drover/foundation';
import { logFile } from '@drover/init';
import { link } from '@drover/protocol';
import { z } from 'zod';
import { maxLogAnswerBytes, maxLogReadBytes } from '../limits.ts';

const logLine = z.object({ s: z.union([z.literal(1), z.literal(2)]), t: z.number().nonnegative(), d: z.base64() });

/**
 * The kept output of a sandbox's main process, newest last, at most `tailBytes` of it. The files are written inside the
 * sandbox: links are not followed, sizes are bounded, and a line that is not a record is passed over.
 */
export async function readKeptLogs(runDirectory: string, tailBytes: number): Promise<link.LogData> {
  const limit = Math.min(tailBytes === 0 ? maxLogAnswerBytes : tailBytes, maxLogAnswerBytes);
  const text = (await readTail(join(runDirectory, `${logFile}.1`))) + (await readTail(join(runDirectory, logFile)));
  const records: link.LogRecord[] = [];
  let bytes = 0;
  for (const line of text.split('\n').toReversed()) {
    const record = parseLine(line);
    if (record === undefined) continue;
    bytes += record.data.byteLength;
    if (bytes > limit) break;
    records.push(record);
  }
  return create(link.LogDataSchema, { records: records.toReversed() });
}

function parseLine(line: string): link.LogRecord | undefined {
  if (line === '') return undefined;
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    // A line cut off by a crash, or something that the sandbox wrote.
    return undefined;
  }
  const parsed = logLine.safeParse(value);
  if (!parsed.success) return undefined;
  return create(link.LogRecordSchema, {
    stream: parsed.data.s === 1 ? link.LogRecord_Stream.STDOUT : link.LogRecord_Stream.STDERR,
    time: timestampFromMs(parsed.data.t),
    data: Buffer.from(parsed.data.d, 'base64'),
  });
}

async function readTail(path: string): Promise<string> {
  let file;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ELOOP') return '';
    throw error;
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile()) return '';
    const length = Math.min(stats.size, maxLogReadBytes);
    const buffer = Buffer.alloc(length);
    const { bytesRead } = await file.read(buffer, 0, length, stats.size - length);
    const text = buffer.toString('utf8', 0, bytesRead);
    return text.endsWith('\n') ? text : `${text}\n`;
  } finally {
    await file.close();
  }
}
