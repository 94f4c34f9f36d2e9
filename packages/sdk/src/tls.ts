import { createHash, X509Certificate } from 'node:crypto';
import { connect, type DetailedPeerCertificate, type PeerCertificate, type SecureContextOptions } from 'node:tls';
import { certificateDatesError, DroverError } from '@drover/foundation';
import { caFetchTimeoutMs } from './limits.ts';
import { fromApiError } from './errors.ts';

/** The SPIFFE ID of a control plane (spec 2, I-5), which a server certificate of Drover's own CA must carry. */
const controlPlaneId = /^spiffe:\/\/[^/]+\/control-plane$/;

/**
 * TLS options that trust exactly `caPem`. The server is authenticated by its URI name, so that it can have any address; the certificate of a
 * host or a sandbox of the same CA is refused.
 */
export function trustOnly(caPem: string): SecureContextOptions & {
  readonly checkServerIdentity: (host: string, certificate: PeerCertificate) => Error | undefined;
} {
  return {
    ca: caPem,
    minVersion: 'TLSv1.3',
    checkServerIdentity: (_host, { raw }) => {
      const names = new X509Certificate(raw).subjectAltName ?? '';
      const uris = [...names.matchAll(/(?:^|, )URI:([^",]+)(?=, |$)/g)].flatMap((match) => match[1] ?? []);
      if (uris.length === 1 && controlPlaneId.test(uris[0] ?? '')) return undefined;
      return new DroverError('ca-mismatch', 'the certificate of the server is not a control plane’s', {
        hint: 'check the address: another component of this installation listens there',
      });
    },
  };
}

/**
 * Fetches the CA certificate with the SHA-256 `fingerprint` from a server. The connection is not trusted and carries no data; the certificate
 * is trusted because of its fingerprint.
 * @param server `https://host:port`
 * @param fingerprint lower-case hex
 * @returns PEM
 * @throws {DroverError} ca-mismatch, control-plane-unreachable
 */
export async function fetchCaByFingerprint(server: string, fingerprint: string, signal?: AbortSignal): Promise<string> {
  const url = parseServer(server);
  const chain = await peerChain(url, signal);
  const wanted = fingerprint.toLowerCase().replaceAll(':', '');
  const ca = chain.find((raw) => createHash('sha256').update(raw).digest('hex') === wanted);
  if (ca === undefined) {
    throw new DroverError('ca-mismatch', `the CA of ${url.host} is not the one with the fingerprint ${wanted.slice(0, 16)}…`, {
      hint: 'check the address; a control plane with a new data directory has a new CA',
    });
  }
  return new X509Certificate(ca).toString();
}

/** `cause`, an error about the dates of a server's certificate, with those dates and the time of this machine in its message. */
export async function clockError(url: URL, cause: DroverError): Promise<DroverError> {
  try {
    const chain = await peerChain(url, undefined);
    return (
      certificateDatesError(
        url.host,
        chain.map((raw) => new X509Certificate(raw)),
        new Date(),
        cause,
      ) ?? cause
    );
  } catch {
    return cause;
  }
}

/** @throws {DroverError} invalid-argument */
export function parseServer(server: string): URL {
  let url: URL | undefined;
  try {
    url = new URL(server);
  } catch {
    // Reported below.
  }
  if (url === undefined || url.protocol !== 'https:' || url.hostname === '' || (url.pathname !== '/' && url.pathname !== '')) {
    throw new DroverError('invalid-argument', `${JSON.stringify(server.slice(0, 200))} is not a server`, {
      hint: 'write https://HOST:PORT, for instance https://127.0.0.1:7443',
    });
  }
  return url;
}

async function peerChain(url: URL, signal: AbortSignal | undefined): Promise<readonly Buffer[]> {
  const timeout = AbortSignal.timeout(caFetchTimeoutMs);
  const either = signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  const socket = connect({
    host,
    port: Number(url.port || 443),
    // Only the certificates are read: nothing else is sent or received.
    rejectUnauthorized: false,
    ALPNProtocols: ['h2', 'http/1.1'],
  });
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('secureConnect', resolve);
      socket.once('error', reject);
      either.addEventListener('abort', () => reject(either.reason as Error), { once: true });
    });
    const chain: Buffer[] = [];
    let certificate: DetailedPeerCertificate | undefined = socket.getPeerCertificate(true);
    // The last certificate is its own issuer.
    while (certificate?.raw !== undefined && chain.length < 8) {
      chain.push(certificate.raw);
      const issuer: DetailedPeerCertificate | undefined = certificate.issuerCertificate;
      certificate = issuer === certificate ? undefined : issuer;
    }
    return chain;
  } catch (error) {
    if (timeout.aborted) {
      throw new DroverError('control-plane-unreachable', `cannot reach the control plane at ${url.host}: it does not respond`, {
        hint: 'check the address and the network in between',
        cause: error,
      });
    }
    throw fromApiError(error, url.host);
  } finally {
    socket.destroy();
  }
}
