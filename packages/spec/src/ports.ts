import { invalid, quote } from './invalid.ts';

/** Whether a TCP port can have this number. */
export function isPort(port: number): boolean {
  return Number.isInteger(port) && port >= 1 && port <= 65_535;
}

/** A port from 1 to 65535, decimal, without sign or leading zeros. @throws {DroverError} invalid-argument */
export function parsePort(text: string): number {
  const port = /^[1-9]\d{0,4}$/.test(text) ? Number(text) : 0;
  if (isPort(port)) return port;
  throw invalid(`${quote(text)} is not a port`, 'write a number from 1 to 65535');
}
