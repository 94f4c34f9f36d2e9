import type { Logger } from '@drover/foundation';

/** The levels of Drover's log entries. */
const writers: Readonly<Record<number, 'debug' | 'info' | 'warn' | 'error'>> = { 20: 'debug', 30: 'info', 40: 'warn' };

/**
 * Writes a line of another Drover program to this one's log: as the entry that it is, or as text.
 * @returns the entry's message and hint when it is an error
 */
export function relayLogLine(
  logger: Logger,
  from: Readonly<Record<string, unknown>>,
  line: string,
): { readonly message: string; readonly hint: string | undefined } | undefined {
  let entry: Record<string, unknown>;
  try {
    entry = JSON.parse(line) as Record<string, unknown>;
  } catch {
    logger.info(from, line);
    return undefined;
  }
  const { level, time: _time, pid: _pid, name: _name, msg, ...fields } = entry;
  logger[writers[Number(level)] ?? 'error']({ ...from, ...fields }, String(msg));
  if (level !== 50) return undefined;
  return { message: String(msg), hint: typeof fields['hint'] === 'string' ? fields['hint'] : undefined };
}
