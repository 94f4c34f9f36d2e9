import { X509Certificate } from 'node:crypto';
import { connect, type DetailedPeerCertificate, type PeerCertificate } from 'node:tls';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { certificateDatesError, DroverError, reasonOf, type HostId } from '@drover/foundation';
import { createKeyAndRequest, parseJoinToken, thumbprintOf } from '@drover/pki';
import { api } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { joinTimeoutMs } from '../limits.ts';
import { ensureHostId, loadIdentity, saveIdentity, type HostIdentity } from './identity.ts';
import { controlPlaneIdentityError } from './trust.ts';

export interface JoinOptions {
  /** `https://host:port` of the control plane's API. */
  readonly url: string;
  /** As `drover host token` printed it (L-1). */
  readonly token: string;
  readonly stateDir: string;
  readonly hostname: string;
  /** From the configuration (L-7). Default: made at the first join and stored. */
  readonly hostId?: HostId;
  readonly signal?: AbortSignal;
}

/**
 * Joins this host to a control plane (L-2) and keeps what it got in `<stateDir>/identity`. May be repeated, after a lost
 * answer or to renew an expired certificate. The token is sent only to a server that proved to be of the CA that the token
 * names (L-1, L-3).
 * @returns with the host's name from the control plane; empty if it reports none
 * @throws {DroverError} invalid-argument, ca-mismatch, join-refused, control-plane-unreachable
 */
export async function joinHost(options: JoinOptions): Promise<HostIdentity & { readonly hostName: string }> {
  const { caFingerprint } = parseJoinToken(options.token);
  const url = parseUrl(options.url);
  const hostId = await ensureHostId(options.stateDir, options.hostId);
  const signal = AbortSignal.any([AbortSignal.timeout(joinTimeoutMs), ...(options.signal === undefined ? [] : [options.signal])]);
  const caPem = await fetchCa(url, caFingerprint, signal);
  const { keyPem, csrDer } = createKeyAndRequest();
  let impostor: Error | undefined;
  const connection = new ReadableSessionManager(
    url.origin,
    {},
    {
      minVersion: 'TLSv1.3',
      ca: caPem,
      // The chain is verified against that one CA before this is called, and all of it before the request is sent.
      checkServerIdentity: (_name: string, certificate: PeerCertificate) => {
        impostor = controlPlaneIdentityError(certificate);
        return impostor;
      },
    },
  );
  const transport = createConnectTransport({
    baseUrl: url.origin,
    httpVersion: '2',
    sessionManager: connection,
    readMaxBytes: 1024 * 1024,
  });
  const client = createClient(api.JoinService, transport);
  let answer: api.JoinResponse;
  try {
    answer = await client.join({ token: options.token, hostId, hostname: options.hostname, csrDer }, { signal });
  } catch (error) {
    throw impostor === undefined ? refusal(error, url) : mismatch(url);
  } finally {
    connection.abort();
  }
  if (answer.caPem === '' || thumbprintOf(answer.caPem) !== caFingerprint) throw mismatch(url);
  const identity: HostIdentity = {
    hostId,
    trustDomain: answer.trustDomain,
    linkAddress: answer.linkAddress.startsWith(':') ? `${url.hostname}${answer.linkAddress}` : answer.linkAddress,
    labels: { ...answer.labels },
    keyPem,
    certificatePem: answer.certificatePem,
    caPem: answer.caPem,
  };
  await saveIdentity(options.stateDir, identity);
  return { ...identity, hostName: answer.hostName };
}

/** A state directory is one host of one control plane: its sandboxes would be unknown to another, and would end. @throws {DroverError} invalid-argument for a token that is none; failed-precondition */
export async function checkOtherControlPlane(stateDirectory: string, token: string): Promise<void> {
  const { caFingerprint } = parseJoinToken(token);
  const known = await loadIdentity(stateDirectory);
  if (known === undefined || thumbprintOf(known.caPem) === caFingerprint) return;
  throw new DroverError('failed-precondition', `${stateDirectory} belongs to a host of another control plane (${known.linkAddress})`, {
    hint: 'use another directory with --state, or remove the host there with drover host rm and then the directory',
  });
}

function parseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol === 'https:' && url.hostname !== '') return url;
  throw new DroverError('invalid-argument', `${JSON.stringify(text.slice(0, 100))} is not the address of a control plane`, {
    hint: 'write https://HOST:PORT, as `drover host token` prints it',
  });
}

/** The CA certificate with this fingerprint in the server's chain. This trusts nothing. */
async function fetchCa(url: URL, fingerprint: string, signal: AbortSignal): Promise<string> {
  const chain = await new Promise<readonly X509Certificate[]>((resolve, reject) => {
    const socket = connect(
      {
        host: url.hostname.replace(/^\[|\]$/g, ''),
        port: Number(url.port === '' ? 443 : url.port),
        minVersion: 'TLSv1.3',
        ALPNProtocols: ['h2'],
        // Only to look at what it shows: the real connection verifies it.
        rejectUnauthorized: false,
      },
      () => {
        resolve(chainOf(socket.getPeerCertificate(true)));
        socket.destroy();
      },
    );
    socket.once('error', reject);
    signal.addEventListener('abort', () => socket.destroy(signal.reason as Error), { once: true });
  }).catch((error: unknown) => {
    throw unreachable(url, error);
  });
  const ca = chain.find((certificate) => thumbprintOf(certificate.raw) === fingerprint);
  if (ca === undefined) throw mismatch(url);
  const dates = certificateDatesError(url.host, chain, new Date());
  if (dates !== undefined) throw dates;
  return ca.toString();
}

function chainOf(leaf: DetailedPeerCertificate): readonly X509Certificate[] {
  const chain: X509Certificate[] = [];
  let at: DetailedPeerCertificate | undefined = leaf;
  // The last one is its own issuer; a chain of ours has two.
  while (at?.raw !== undefined && chain.length < 8) {
    chain.push(new X509Certificate(at.raw));
    at = at.issuerCertificate === at ? undefined : at.issuerCertificate;
  }
  return chain;
}

function mismatch(url: URL): DroverError {
  return new DroverError('ca-mismatch', `the control plane at ${url.origin} did not make this join token`, {
    hint: 'check the address, and make a new token with `drover host token` on that control plane; the token was not sent',
  });
}

function unreachable(url: URL, cause: unknown): DroverError {
  const why = reasonOf(cause);
  return new DroverError('control-plane-unreachable', `the control plane at ${url.origin} cannot be reached: ${why}`, {
    hint: 'check the address, and that this machine can connect to it',
    cause,
  });
}

function refusal(error: unknown, url: URL): DroverError {
  const { code, rawMessage } = ConnectError.from(error);
  switch (code) {
    case Code.PermissionDenied:
    case Code.Unauthenticated:
      return new DroverError('join-refused', 'the control plane refused the join token: it is unknown, used up or expired', {
        hint: 'make a new one with `drover host token`',
        cause: error,
      });
    case Code.InvalidArgument:
      return new DroverError('invalid-argument', `the control plane refused the join: ${rawMessage}`, { cause: error });
    case Code.Unavailable:
    case Code.DeadlineExceeded:
    case Code.Canceled:
    case Code.Aborted:
      // A failed TLS handshake counts as unreachable too; its message shows the reason.
      return unreachable(url, error);
    default:
      return new DroverError('internal', `the join failed: ${rawMessage}`, { hint: 'try again', cause: error });
  }
}
