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

  /** @param onTimeout is told which limit was hit; the connection is cut then */
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

  /** TLS is done: the certificate chains to the CA. */
  secured(certificate: SandboxCertificate | undefined): void {
    this.#certificate = certificate;
    this.#wait();
  }

  /** A call begins. Gives what to do when it is over. */
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

  /** @returns a function that ends the limit, as the end of the connection does */
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
