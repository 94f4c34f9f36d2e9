import { isIP } from 'node:net';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { clip, DroverError } from '@drover/foundation';
import { parseDurationWithin } from '@drover/spec';
import { maxLivenessMs, minHostTtlMs, minLostGraceMs } from '../limits.ts';

/** /var/lib/drover for root, else `$XDG_DATA_HOME/drover` or below `~/.local/share` (XDG base directory specification). */
export function defaultDataDirectory(env: NodeJS.ProcessEnv): string {
  if (process.getuid?.() === 0) return '/var/lib/drover';
  const base = env['XDG_DATA_HOME'];
  return join(base !== undefined && base.startsWith('/') ? base : join(env['HOME'] ?? homedir(), '.local', 'share'), 'drover');
}

/** `HOST:PORT`, `[IPV6]:PORT`, `:PORT` or `PORT`. @throws {DroverError} invalid-argument */
export function parseListen(text: string): { readonly host: string; readonly port: number } {
  const match = /^(?:(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]*):)?(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (match === null || port > 65_535) {
    throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} is not an address to listen on`, {
      hint: 'write HOST:PORT, such as 127.0.0.1:7443',
    });
  }
  const host = (match[1] ?? '').replace(/^\[|\]$/g, '');
  return { host: host === '' ? (match[1] === undefined ? '127.0.0.1' : '0.0.0.0') : host, port };
}

/** The name or address under which other machines reach the control plane. @throws {DroverError} invalid-argument */
export function parsePublicHost(text: string): string {
  if (/^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/.test(text) || isIP(text.replace(/^\[|\]$/g, '')) === 6) return text;
  throw new DroverError('invalid-argument', `--public-host ${JSON.stringify(clip(text))} is not a name or an address`, {
    hint: 'write it without scheme and port, such as control-plane.example.com',
  });
}

/** The listen address for hosts; default: the port after the API's. */
export function linkListen(
  listen: { readonly host: string; readonly port: number },
  text: string | undefined,
): { readonly host: string; readonly port: number } {
  if (text !== undefined) return parseListen(text);
  return { host: listen.host, port: listen.port === 0 || listen.port === 65_535 ? 0 : listen.port + 1 };
}

/** The flags of `up` and `serve` that determine when a host is down and when its sandboxes are lost. */
export interface LivenessFlags {
  readonly hostTtl?: string;
  readonly lostGrace?: string;
}

/** L-10, L-26. @throws {DroverError} invalid-argument */
export function parseLiveness(flags: LivenessFlags): { readonly hostTtlMs?: number; readonly lostGraceMs?: number } {
  return {
    ...(flags.hostTtl !== undefined && { hostTtlMs: parseDurationWithin('--host-ttl', flags.hostTtl, minHostTtlMs, maxLivenessMs) }),
    ...(flags.lostGrace !== undefined && {
      lostGraceMs: parseDurationWithin('--lost-grace', flags.lostGrace, minLostGraceMs, maxLivenessMs),
    }),
  };
}
