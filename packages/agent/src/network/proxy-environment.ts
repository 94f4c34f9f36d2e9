import type { NetworkAttachment } from '../runtimes/runtime.ts';

/**
 * The environment that leads programs to the egress proxy: both spellings, since curl reads only the lower-case http_proxy
 * and others only the upper-case ones. Names on the sandbox itself bypass it.
 */
export function proxyEnvironment(attachment: Pick<NetworkAttachment, 'gatewayAddress' | 'proxyPort'>): Readonly<Record<string, string>> {
  const proxy = `http://${attachment.gatewayAddress}:${attachment.proxyPort}`;
  const direct = 'localhost,127.0.0.1,::1';
  return {
    HTTP_PROXY: proxy,
    http_proxy: proxy,
    HTTPS_PROXY: proxy,
    https_proxy: proxy,
    ALL_PROXY: proxy,
    all_proxy: proxy,
    NO_PROXY: direct,
    no_proxy: direct,
  };
}
