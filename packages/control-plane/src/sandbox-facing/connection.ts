import type { Duplex } from 'node:stream';
import { after, type Clock } from '@drover/foundation';
import { sandboxHandshakeMs, sandboxIdleMs, sandboxRequestMs } from '../limits.ts';
import type { Caller, SandboxCertificate } from './caller.ts';

/** One connection of a sandbox and its time limits: for the handshake, for each call, and between calls. */
export class Connection {
  readonly stream: Duplex;
  readonly #origin: Omit<Caller, 'certificate'>;
  readonly #clock: Clock;
  readonly #onTimeout: (what: string) => void;
  #stopWaiting: () => void;
  #calls = 0;
  #certificate: SandboxCertificate | undefined;

  /** @param onTimeout called with the exceeded limit, before the connection is cut */
  constructor(stream: Duplex, origin: Omit<Caller, 'certificate'>, clock: Clock, onTimeout: (what: string) => void) {
    this.stream = stream;
    this.#origin = origin;
    this.#clock = clock;
    this.#onTimeout = onTimeout;
    this.#stopWaiting = this.#limit(sandboxHandshakeMs, 'the TLS handshake');
  }

  get caller(): Caller {
    return { ...this.#origin, certificate: this.#certificate };
  }

  get calls(): number {
    return this.#calls;
  }

  /** The TLS handshake has succeeded: the certificate chains to the CA. */
  secured(certificate: SandboxCertificate | undefined): void {
    this.#certificate = certificate;
    this.#wait();
  }

  /** Begins a call. @returns a function that ends it */
  call(): () => void {
    this.#stopWaiting();
    this.#calls++;
    const done = this.#limit(sandboxRequestMs, 'a call');
    return () => {
      done();
      this.#calls--;
      if (this.#calls === 0) this.#wait();
    };
  }

  #wait(): void {
    this.#stopWaiting();
    this.#stopWaiting = this.#limit(sandboxIdleMs, 'the wait for a call');
  }

  /** @returns a function that lifts the limit, as the end of the connection does */
  #limit(ms: number, what: string): () => void {
    if (this.stream.closed) return () => undefined;
    const stop = after(ms, this.#clock, () => {
      this.#onTimeout(what);
      this.stream.destroy();
    });
    this.stream.once('close', stop);
    return () => {
      this.stream.removeListener('close', stop);
      stop();
    };
  }
}
