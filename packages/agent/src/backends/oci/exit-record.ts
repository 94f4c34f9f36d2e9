import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { clip } from '@drover/foundation';
import type { ExitRecord } from '@drover/init';
import { maxExitRecordBytes } from '../../limits.ts';

/**
 * Reads the exit record of init. The sandbox could write anything there: links are not followed, pipes are not awaited, the size is bounded, and an
 * invalid record counts as none.
 */
export async function readExitRecord(runDirectory: string): Promise<ExitRecord | undefined> {
  let text: string;
  try {
    const file = await open(join(runDirectory, 'exit.json'), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      const buffer = Buffer.alloc(maxExitRecordBytes + 1);
      if (!(await file.stat()).isFile()) return undefined;
      const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
      if (bytesRead > maxExitRecordBytes) return undefined;
      text = buffer.toString('utf8', 0, bytesRead);
    } finally {
      await file.close();
    }
  } catch {
    // Absent, a link, a device.
    return undefined;
  }
  return parseExitRecord(text);
}

export function parseExitRecord(text: string): ExitRecord | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null) return undefined;
  const { code, signal, at, outOfMemory, reason, message } = value as Record<string, unknown>;
  if (typeof code !== 'number' || !Number.isInteger(code) || code < 0 || code > 255) return undefined;
  if (typeof at !== 'number' || !Number.isSafeInteger(at) || at < 0) return undefined;
  return {
    code,
    at,
    outOfMemory: outOfMemory === true,
    signal: typeof signal === 'string' ? clip(signal, 32) : '',
    reason: typeof reason === 'string' ? clip(reason, 64) : '',
    message: typeof message === 'string' ? clip(message, 4096) : '',
  };
}
