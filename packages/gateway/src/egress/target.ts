import { DroverError } from '@drover/foundation';
import { formatHost, parseAuthority, type Host } from '@drover/spec/policy';
import { badRequest } from './refusal.ts';

/** The destination of a request. */
export interface Target {
  readonly host: Host;
  readonly port: number;
  /** Path and query of an absolute-form request; empty for CONNECT. */
  readonly path: string;
}

/** Parses CONNECT's authority-form, with host and port. @throws {RefusedError} 400 */
export function parseConnectTarget(text: string): Target {
  return { ...authority(text), path: '' };
}

/**
 * Parses the absolute-form of a request to a proxy: `http://host[:port]/path`, without user information, fragment or another scheme.
 * @param hostHeaders every Host field; it must name the same host as the target (G-16)
 * @throws {RefusedError} 400
 */
export function parseAbsoluteTarget(url: string, hostHeaders: readonly string[]): Target {
  const match = /^http:\/\/([^/?#@\\]+)((?:\/|\?)[^#]*)?$/i.exec(url);
  if (match?.[1] === undefined) {
    throw badRequest(
      url.startsWith('/')
        ? 'this is an HTTP proxy: it has no pages'
        : 'a request to this proxy is http://HOST/PATH, or CONNECT HOST:PORT for anything else',
    );
  }
  const target = authority(match[1], 80);
  const path = match[2] ?? '/';
  if (hostHeaders.length > 1) throw badRequest('the request has more than one Host');
  const [hostHeader] = hostHeaders;
  if (hostHeader !== undefined) {
    const named = authority(hostHeader, 80);
    if (formatHost(named.host) !== formatHost(target.host) || named.port !== target.port) {
      throw badRequest('the Host field names another host than the request');
    }
  }
  return { ...target, path: path.startsWith('?') ? `/${path}` : path };
}

function authority(text: string, defaultPort?: number): { host: Host; port: number } {
  try {
    return parseAuthority(text, defaultPort);
  } catch (error) {
    throw badRequest(DroverError.from(error).message);
  }
}
