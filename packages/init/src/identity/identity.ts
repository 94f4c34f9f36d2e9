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
  /** Where a renewed certificate goes. */
  readonly runDirectory: string;
  readonly identity: ServerIdentity;
  /** The single-use token that this start was given; empty when it was given none. */
  readonly bootstrapToken: string;
  /** Has new connections answered with the new certificate. */
  readonly renewed: (identity: ServerIdentity) => void;
  /** What to reach the control plane over; default: TCP, to the config's `control`. */
  readonly transport?: (() => Duplex) | undefined;
}

/** What this sandbox proves who it is with: its certificate, which is renewed (I-6), and what registering gave it (I-13). */
export class Identity {
  readonly #options: IdentityOptions;
  #current: ServerIdentity;
  #registering: Promise<void> | undefined;
  #early: EarlyConnection | undefined;

  constructor(options: IdentityOptions) {
    this.#options = options;
    this.#current = options.identity;
  }

  /** Makes the connection that Register will need, when it may be asked for. */
  connectEarly(): void {
    const { config, bootstrapToken, transport } = this.#options;
    if (config.control === undefined || bootstrapToken === '') return;
    this.#early = new EarlyConnection({ ...config, control: config.control, identity: this.#current, transport });
  }

  /**
   * Registers with the control plane (I-13); called while it does so, waits for the same.
   * @param token a fresh bootstrap token; empty: the one that this start was given
   * @throws {DroverError} failed-precondition, permission-denied, ca-mismatch, control-plane-unreachable, timed-out, …
   */
  async register(token: string): Promise<void> {
    this.#registering ??= this.#register(token === '' ? this.#options.bootstrapToken : token).finally(() => {
      this.#registering = undefined;
    });
    await this.#registering;
  }

  /**
   * Takes a certificate for the key that this sandbox has, and the same names (I-6). Connections that stand keep the old one.
   * @throws {DroverError} invalid-argument when it is another's
   */
  install(certificatePem: string): void {
    const { keyPem, certificatePem: present } = this.#current;
    const certificate = parse(certificatePem);
    if (!certificate.checkPrivateKey(createPrivateKey(keyPem))) throw refusal('it is for another key');
    const before = new X509Certificate(present);
    if (certificate.subject !== before.subject || certificate.subjectAltName !== before.subjectAltName)
      throw refusal('it names someone else');
    const renewed = { ...this.#current, certificatePem };
    try {
      this.#options.renewed(renewed);
    } catch (error) {
      throw refusal('OpenSSL does not take it', error);
    }
    this.#current = renewed;
    // It would show the old one.
    this.#early?.end();
    this.#early = undefined;
    this.#write(certificatePem);
  }

  async #register(bootstrapToken: string): Promise<void> {
    const { config, transport } = this.#options;
    if (config.control === undefined) throw new DroverError('failed-precondition', 'the sandbox was given no way to the control plane');
    if (bootstrapToken === '') throw new DroverError('failed-precondition', 'the sandbox was given no token to register with');
    // The client is needed once in most sandboxes' lives.
    const [{ register }, early] = await Promise.all([import('./register.ts'), this.#early?.take()]);
    this.#early = undefined;
    await register({ ...config, control: config.control, identity: this.#current, bootstrapToken, early, transport });
  }

  /** For who looks into the run directory; init itself has it in memory. */
  #write(certificatePem: string): void {
    const path = join(this.#options.runDirectory, 'cert.pem');
    const temporary = `${path}.tmp`;
    try {
      rmSync(temporary, { force: true });
      writeFileSync(temporary, certificatePem, { flag: 'wx', mode: 0o400 });
      renameSync(temporary, path);
    } catch {
      // A full disk does not take the certificate away again.
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
