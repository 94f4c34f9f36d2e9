import { isIP } from 'node:net';
import { hostname, networkInterfaces } from 'node:os';
import { DroverError, hasCode } from '@drover/foundation';
import type { ControlPlaneOptions, ListenAddress } from './options.ts';

/** Listens on the requested port; for port 0 on the port of the last start, so that hosts and clients find the server again. */
export async function atPort<T>(
  asked: ListenAddress,
  last: number,
  what: string,
  listen: (address: ListenAddress) => Promise<T>,
): Promise<T> {
  const port = asked.port === 0 ? last : asked.port;
  try {
    return await listen({ host: asked.host, port });
  } catch (error) {
    if (!hasCode(error, 'port-in-use')) throw error;
    throw new DroverError('port-in-use', `port ${port} of ${asked.host}, for ${what}, is in use by another program`, {
      hint: 'stop that program, or choose another port with --listen or --link-listen',
      cause: error,
    });
  }
}

export interface CertificateNames {
  readonly dnsNames: readonly string[];
  readonly ipAddresses: readonly string[];
}

/** All names and addresses under which clients may reach this server. */
export function certificateNames(options: ControlPlaneOptions): CertificateNames {
  const all = [
    'localhost',
    '127.0.0.1',
    '::1',
    hostname(),
    ...(options.publicHost === undefined ? [] : [options.publicHost]),
    options.listen.host,
    options.linkListen.host,
    ...(options.dnsNames ?? []),
    ...(options.ipAddresses ?? []),
  ];
  const isAddress = (name: string): boolean => isIP(name) !== 0;
  const unspecified = new Set(['0.0.0.0', '::', '']);
  const names = [...new Set(all)].filter((name) => !unspecified.has(name));
  return { dnsNames: names.filter((name) => !isAddress(name)), ipAddresses: names.filter(isAddress) };
}

/** An address that other machines can try. A server that listens on all addresses has to choose one. */
export function reachableHost(listenHost: string): string {
  if (listenHost !== '0.0.0.0' && listenHost !== '::' && listenHost !== '') return listenHost;
  const outward = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .find((address) => !address.internal && address.family === 'IPv4');
  return outward?.address ?? '127.0.0.1';
}

/** RFC 3986, section 3.2.2: an IPv6 address is enclosed in brackets. */
export function bracketed(host: string): string {
  return isIP(host) === 6 ? `[${host}]` : host;
}
