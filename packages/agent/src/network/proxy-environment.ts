import type { SandboxAddresses } from './network.ts';

/**
 * The environment that leads programs to the egress proxy (G-30). Both spellings: curl reads only the lower-case http_proxy, others only
 * the upper-case ones. Node.js reads them with NODE_USE_ENV_PROXY (from 22.21 and 24.5 on).
 * The sandbox itself is excluded by each form that a client may know: loopback as names, addresses and network, its own name and address.
 */
export function proxyEnvironment(
  { gatewayAddress, proxyPort, address }: Pick<SandboxAddresses, 'gatewayAddress' | 'proxyPort' | 'address'>,
  hostname: string,
): Readonly<Record<string, string>> {
  const proxy = `http://${gatewayAddress}:${proxyPort}`;
  const direct = ['localhost', '127.0.0.1', '127.0.0.0/8', '::1', '[::1]', hostname, address].join(',');
  return {
    HTTP_PROXY: proxy,
    http_proxy: proxy,
    HTTPS_PROXY: proxy,
    https_proxy: proxy,
    ALL_PROXY: proxy,
    all_proxy: proxy,
    NO_PROXY: direct,
    no_proxy: direct,
    NODE_USE_ENV_PROXY: '1',
  };
}
