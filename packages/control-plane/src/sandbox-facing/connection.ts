import type { Duplex } from 'node:stream';
import type { Clock } from '@drover/foundation';
import { sandboxHandshakeMs, sandboxIdleMs, sandboxRequestMs } from '../limits.ts';
import type { Caller, SandboxCertificate } from './caller.ts';

/** One connection of a sandbox and its time limits: for the handshake, for each call, and between calls. */
export class Connection {
  readonly stream: Duplex;
  readonly #origin: Omit<Caller, 'certificate'>;
  readonly #clock: Clock;
  readonly #onTimeout: (what: string) => void;
  readonly #closed = new AbortController();
  #waiting = new AbortController();
  #calls = 0;
  #certificate: SandboxCertificate | undefined;

  /** @param onTimeout is told which limit was hit; the connection is cut then */
  constructor(stream: Duplex, origin: Omit<Caller, 'certificate'>, clock: Clock, onTimeout: (what: string) => void) {
    this.stream = stream;
    this.#origin = origin;
    this.#clock = clock;
    this.#onTimeout = onTimeout;
    stream.once('close', () => this.#closed.abort());
    this.#limit(sandboxHandshakeMs, 'the TLS handshake', this.#waiting.signal);
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
    const done = new AbortController();
    this.#waiting.abort();
    this.#calls++;
    this.#limit(sandboxRequestMs, 'a call', done.signal);
    return () => {
      done.abort();
      this.#calls--;
      if (this.#calls === 0) this.#wait();
    };
  }

  #wait(): void {
    this.#waiting.abort();
    this.#waiting = new AbortController();
    this.#limit(sandboxIdleMs, 'the wait for a call', this.#waiting.signal);
  }

  #limit(ms: number, what: string, over: AbortSignal): void {
    this.#clock.sleep(ms, AbortSignal.any([over, this.#closed.signal])).then(
      () => {
        this.#onTimeout(what);
        this.stream.destroy();
      },
      // It was over in time.
      () => undefined,
    );
  }
}
