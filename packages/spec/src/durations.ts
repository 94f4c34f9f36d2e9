import { invalid, quote } from './invalid.ts';

const units: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `90s`, `1h30m`, `500ms` in milliseconds; a bare number counts seconds. @throws {DroverError} invalid-argument */
export function parseDurationMs(text: string): number {
  const trimmed = text.trim();
  const parts = [...(/^\d+$/.test(trimmed) ? `${trimmed}s` : trimmed).matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)|(.)/gs)];
  const ms = Math.round(parts.reduce((sum, [, number, unit = '']) => sum + Number(number) * (units[unit] ?? Number.NaN), 0));
  if (parts.length > 0 && Number.isSafeInteger(ms)) return ms;
  throw invalid(`${quote(text)} is not a duration`, 'write a number and a unit, such as 30s, 10m or 1h30m');
}

/** `1h`, `90s`, `1500ms`: in the largest unit that leaves no rest, so that `parseDurationMs` returns `ms` for it. */
export function formatDuration(ms: number): string {
  const [unit, factor] = Object.entries(units).findLast(([, size]) => ms > 0 && ms % size === 0) ?? ['s', 1000];
  return `${ms / factor}${unit}`;
}

/** A duration from `leastMs` to `mostMs`. @throws {DroverError} invalid-argument naming the flag and the range */
export function parseDurationWithin(flag: string, text: string, leastMs: number, mostMs: number): number {
  const ms = parseDurationMs(text);
  if (ms >= leastMs && ms <= mostMs) return ms;
  const range = `${formatDuration(leastMs)} to ${formatDuration(mostMs)}`;
  throw invalid(`${flag} ${quote(text)} is too ${ms < leastMs ? 'short' : 'long'}`, `use ${range}`);
}
