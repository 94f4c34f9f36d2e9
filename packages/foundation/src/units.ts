import { DroverError } from './errors.ts';
import { clip } from './ids.ts';

const byteUnits: Record<string, number> = { '': 1, b: 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4 };

/** `512m`, `1.5g`, `2GiB`, `1048576` to bytes; units are powers of 1024. @throws {DroverError} invalid-argument */
export function parseBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?$/i.exec(text.trim());
  const value = match === null ? Number.NaN : Number(match[1]) * (byteUnits[(match[2] ?? '').toLowerCase()] ?? Number.NaN);
  if (!Number.isSafeInteger(Math.round(value)) || value <= 0) {
    throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} is not a size`, {
      hint: 'write a number and a unit, such as 512m or 2g',
    });
  }
  return Math.round(value);
}

/** `1.5` or `500m` CPUs to thousandths. @throws {DroverError} invalid-argument */
export function parseCpus(text: string): number {
  const match = /^(\d+(?:\.\d+)?|\.\d+)(m?)$/.exec(text.trim());
  const millis = match === null ? Number.NaN : Math.round(Number(match[1]) * (match[2] === 'm' ? 1 : 1000));
  if (!(millis >= 1 && millis <= 1_000_000)) {
    throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} is not a number of CPUs`, {
      hint: 'write a number such as 2, 0.5 or 500m',
    });
  }
  return millis;
}

const durationUnits: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `90s`, `1h30m`, `500ms` to milliseconds; a bare number is seconds. @throws {DroverError} invalid-argument */
export function parseDurationMs(text: string): number {
  const trimmed = text.trim();
  if (/^\d+$/.test(trimmed)) return Number(trimmed) * 1000;
  const parts = [...trimmed.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g)];
  if (parts.length === 0 || parts.map((p) => p[0]).join('') !== trimmed) {
    throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} is not a duration`, {
      hint: 'write a number and a unit, such as 30s, 10m or 1h30m',
    });
  }
  return Math.round(parts.reduce((sum, p) => sum + Number(p[1]) * (durationUnits[p[2] ?? ''] ?? 0), 0));
}

/** `1.4 GiB`, for people. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** `3m`, `2h`, `5d`: one unit, for tables. */
export function formatAge(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 120) return `${s}s`;
  if (s < 7200) return `${Math.floor(s / 60)}m`;
  if (s < 172_800) return `${Math.floor(s / 3600)}h`;
  return `${Math.floor(s / 86_400)}d`;
}

/** `1 sandbox`, `2 sandboxes`. */
export function counted(count: number, noun: string): string {
  if (count === 1) return `1 ${noun}`;
  return `${count} ${noun}${/(?:x|s|sh|ch)$/.test(noun) ? 'es' : 's'}`;
}
