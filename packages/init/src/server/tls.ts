import { createServer, setDefaultCACertificates, type SecureContextOptions, type Server, type TLSSocket } from 'node:tls';
import { handshakeTimeoutMs, maxConnections } from '../limits.ts';

/** SSL_OP_NO_TICKET of openssl/ssl.h; node:crypto has it as a constant, and costs memory to load. */
const noTickets = 1 << 14;

/** What the run directory holds for the session's connection. PEM. */
export interface ServerIdentity {
  readonly caPem: string;
  readonly certificatePem: string;
  readonly keyPem: string;
}

/** id-kp-clientAuth, RFC 5280 section 4.2.1.12. */
const clientAuth = '1.3.6.1.5.5.7.3.2';

/**
 * The sandbox's strict side of the session (I-3): TLS 1.3, and one peer only. `accept` gets a socket whose peer chains to the CA,
 * may act as a client and carries the pinned URI SAN; any other connection is closed before a byte of it is read or written.
 */
export function createStrictServer(
  identity: ServerIdentity,
  controlPlaneUri: string,
  accept: (socket: TLSSocket) => void,
  refused: (reason: string) => void,
): Server {
  // Without this OpenSSL's side would parse the whole bundled list of public roots for its default store: 2 MB that nothing uses.
  setDefaultCACertificates([identity.caPem]);
  const server = createServer({
    ...contextOf(identity),
    requestCert: true,
    rejectUnauthorized: true,
    ALPNProtocols: ['h2'],
    // Nothing is resumed. Without one, Node hashes its command line for it at every start.
    sessionIdContext: 'drover-init',
    handshakeTimeout: handshakeTimeoutMs,
  });
  server.maxConnections = maxConnections;
  server.on('secureConnection', (socket) => {
    const reason = refusal(socket, controlPlaneUri);
    if (reason !== undefined) {
      refused(reason);
      socket.on('error', () => undefined);
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    accept(socket);
  });
  server.on('tlsClientError', (error, socket) => {
    // Node hangs up on a certificate that does not verify, and says why in a property, as OpenSSL's code.
    const verdict = socket.authorizationError as unknown;
    refused(typeof verdict === 'string' ? `the certificate is not accepted (${verdict})` : (error.message.split('\n')[0] ?? ''));
  });
  return server;
}

/** Has new connections answered with this certificate; those that stand keep theirs (I-6). @throws {Error} when OpenSSL does not take it */
export function renewCertificate(server: Server, identity: ServerIdentity): void {
  server.setSecureContext(contextOf(identity));
}

function contextOf(identity: ServerIdentity): SecureContextOptions {
  return {
    ca: identity.caPem,
    cert: identity.certificatePem,
    key: identity.keyPem,
    minVersion: 'TLSv1.3',
    // Every connection proves itself anew: a resumed one would skip the certificate.
    secureOptions: noTickets,
  };
}

/** Why the peer is not the control plane; undefined when it is. */
function refusal(socket: TLSSocket, controlPlaneUri: string): string | undefined {
  if (!socket.authorized) return 'the certificate does not chain to the CA';
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return 'no certificate';
  // `keyUsage` is Node's name for the extended key usage; absent, X.509 permits every use, and we do not.
  if (!(certificate.keyUsage as readonly string[] | undefined)?.includes(clientAuth))
    return 'the certificate is not for client authentication';
  const uris = uriNames(certificate.subjectAltName ?? '');
  if (uris.length !== 1 || uris[0] !== controlPlaneUri) return 'the certificate names someone else';
  return undefined;
}

/**
 * The URI names in OpenSSL's text form of subjectAltName, as Node gives it: `URI:…, DNS:…`. Values with special characters are quoted,
 * so commas count only outside quotes; a quoted URI is never ours and stays quoted.
 */
export function uriNames(subjectAltName: string): readonly string[] {
  const entries = subjectAltName.match(/(?:"(?:\\.|[^"\\])*"|[^,"])+/g) ?? [];
  return entries
    .map((entry) => entry.trimStart())
    .filter((entry) => entry.startsWith('URI:'))
    .map((entry) => entry.slice(4));
}
