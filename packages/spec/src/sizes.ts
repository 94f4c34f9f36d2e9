import { invalid, quote } from './invalid.ts';
import { maxCpuMillis } from './limits.ts';

const byteUnits: Readonly<Record<string, number>> = { '': 1, b: 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3, t: 1024 ** 4 };

/** `512m`, `1.5g`, `2GiB`, `1048576` in bytes, above 0; units are powers of 1024. @throws {DroverError} invalid-argument */
export function parseBytes(text: string): number {
  const [, number, unit = ''] = /^(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?$/i.exec(text.trim()) ?? [];
  const bytes = Math.round(Number(number) * (byteUnits[unit.toLowerCase()] ?? Number.NaN));
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw invalid(`${quote(text)} is not a size`, 'write a number and a unit, such as 512m or 2g');
}

/** `1.5` or `500m` CPUs in thousandths, from 1 to `maxCpuMillis`. @throws {DroverError} invalid-argument */
export function parseCpus(text: string): number {
  const [, number, milli] = /^(\d+(?:\.\d+)?|\.\d+)(m?)$/.exec(text.trim()) ?? [];
  const millis = Math.round(Number(number) * (milli === 'm' ? 1 : 1000));
  if (millis >= 1 && millis <= maxCpuMillis) return millis;
  throw invalid(`${quote(text)} is not a number of CPUs`, 'write a number such as 2, 0.5 or 500m');
}

/** A whole number from 1 to `max`. @throws {DroverError} invalid-argument naming the flag */
export function parseCount(flag: string, text: string, max: number): number {
  const value = /^\d{1,10}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= 1 && value <= max) return value;
  throw invalid(`${flag} ${quote(text)} is not a number from 1 to ${max}`, 'write a whole number in that range');
}
