import { createPrivateKey, X509Certificate } from 'node:crypto';
import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { DroverError } from '@drover/foundation';
import type { InitConfig } from '../config.ts';
import type { ServerIdentity } from '../server/index.ts';
import { EarlyConnection } from './connect.ts';

export interface IdentityOptions {
  readonly config: InitConfig;
  /** A renewed certificate is written there. */
  readonly runDirectory: string;
  readonly identity: ServerIdentity;
  /** The single-use token of this start; empty: it has none. */
  readonly bootstrapToken: string;
  /** Makes the server use the new certificate for new connections. */
  readonly renewed: (identity: ServerIdentity) => void;
  /** Opens the transport to the control plane; default: TCP, to the config's `control`. */
  readonly transport?: (() => Duplex) | undefined;
}

/** The identity of this sandbox: its certificate, which is renewed (I-6), and its registration (I-13). */
export class Identity {
  readonly #options: IdentityOptions;
  #current: ServerIdentity;
  #registering: Promise<void> | undefined;
  #early: EarlyConnection | undefined;

  constructor(options: IdentityOptions) {
    this.#options = options;
    this.#current = options.identity;
  }

  /** Opens the connection that Register will need, if this start can register. */
  connectEarly(): void {
    const { config, bootstrapToken, transport } = this.#options;
    if (config.control === undefined || bootstrapToken === '') return;
    this.#early = new EarlyConnection({ ...config, control: config.control, identity: this.#current, transport });
  }

  /**
   * Registers with the control plane (I-13). Concurrent calls share one registration.
   * @param token a fresh bootstrap token; empty: that of this start
   * @throws {DroverError} failed-precondition, permission-denied, ca-mismatch, control-plane-unreachable, timed-out, …
   */
  async register(token: string): Promise<void> {
    this.#registering ??= this.#register(token === '' ? this.#options.bootstrapToken : token).finally(() => {
      this.#registering = undefined;
    });
    await this.#registering;
  }

  /**
   * Installs a certificate for this sandbox's key and names (I-6). Existing connections keep the old one.
   * @throws {DroverError} invalid-argument for another key or other names
   */
  install(certificatePem: string): void {
    const { keyPem, certificatePem: present } = this.#current;
    const certificate = parse(certificatePem);
    if (!certificate.checkPrivateKey(createPrivateKey(keyPem))) throw refusal('it is for another key');
    const before = new X509Certificate(present);
    if (certificate.subject !== before.subject || certificate.subjectAltName !== before.subjectAltName) throw refusal('it has other names');
    const renewed = { ...this.#current, certificatePem };
    try {
      this.#options.renewed(renewed);
    } catch (error) {
      throw refusal('OpenSSL does not take it', error);
    }
    this.#current = renewed;
    // It would present the old one.
    this.#early?.end();
    this.#early = undefined;
    this.#write(certificatePem);
  }

  async #register(bootstrapToken: string): Promise<void> {
    const { config, transport } = this.#options;
    if (config.control === undefined) throw new DroverError('failed-precondition', 'the sandbox has no connection to the control plane');
    if (bootstrapToken === '') throw new DroverError('failed-precondition', 'the sandbox has no token to register with');
    // Most sandboxes register once: the client is loaded for it.
    const [{ register }, early] = await Promise.all([import('./register.ts'), this.#early?.take()]);
    this.#early = undefined;
    await register({ ...config, control: config.control, identity: this.#current, bootstrapToken, early, transport });
  }

  /** For readers of the run directory; init has the certificate in memory. */
  #write(certificatePem: string): void {
    const path = join(this.#options.runDirectory, 'cert.pem');
    const temporary = `${path}.tmp`;
    try {
      rmSync(temporary, { force: true });
      writeFileSync(temporary, certificatePem, { flag: 'wx', mode: 0o400 });
      renameSync(temporary, path);
    } catch {
      // A full disk: the certificate stays in force.
      rmSync(temporary, { force: true });
    }
  }
}

function parse(certificatePem: string): X509Certificate {
  try {
    return new X509Certificate(certificatePem);
  } catch (error) {
    throw refusal('it cannot be parsed', error);
  }
}

function refusal(why: string, cause?: unknown): DroverError {
  return new DroverError('invalid-argument', `the certificate cannot be installed: ${why}`, { cause });
}
