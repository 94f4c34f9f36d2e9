import type { Clock, Logger } from '@drover/foundation';
import { renewAt, type CertificateAuthority } from '@drover/pki';
import type { ServerIdentity } from '../hub/index.ts';
import { certificateCheckMs } from '../limits.ts';
import type { SessionCredentials } from '../sessions/index.ts';
import type { CertificateNames } from './addresses.ts';

/** The server's certificate, which all of its listeners and its sessions use. It is renewed well before it expires. */
export class ServerCertificate {
  readonly #ca: CertificateAuthority;
  readonly #names: CertificateNames;
  #identity: ServerIdentity;
  #credentials: SessionCredentials;

  private constructor(ca: CertificateAuthority, names: CertificateNames, identity: ServerIdentity) {
    this.#ca = ca;
    this.#names = names;
    this.#identity = identity;
    this.#credentials = credentialsOf(identity, ca);
  }

  static async issue(ca: CertificateAuthority, names: CertificateNames): Promise<ServerCertificate> {
    return new ServerCertificate(ca, names, await ca.issueControlPlane(names));
  }

  get identity(): ServerIdentity {
    return this.#identity;
  }

  /** The same object until the next renewal. */
  get credentials(): SessionCredentials {
    return this.#credentials;
  }

  /** Renews until the signal aborts. Open connections keep their certificate. @param onRenewed called with each new certificate */
  async renewUntilAborted(onRenewed: (identity: ServerIdentity) => void, clock: Clock, logger: Logger, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      if (clock.now() >= renewAt(this.#identity.certificatePem)) {
        try {
          const issued = await this.#ca.issueControlPlane(this.#names);
          this.#identity = issued;
          this.#credentials = credentialsOf(issued, this.#ca);
          onRenewed(issued);
          logger.info({ notAfter: issued.notAfter }, 'the certificate of the server was renewed');
        } catch (error) {
          logger.error({ err: error }, 'the certificate of the server could not be renewed; retrying');
        }
      }
      await clock.sleep(certificateCheckMs, signal).catch(() => undefined);
    }
  }
}

function credentialsOf({ certificatePem, keyPem }: ServerIdentity, { caPem }: CertificateAuthority): SessionCredentials {
  return { certPem: certificatePem, keyPem, caPem };
}
