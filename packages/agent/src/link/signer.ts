import { create } from '@bufbuild/protobuf';
import { after, DroverError, newId, type Clock } from '@drover/foundation';
import { errorFromWire, link } from '@drover/protocol';
import { signingsPerHost } from '@drover/spec';
import { signingTimeoutMs } from '../limits.ts';

export interface Signed {
  readonly certificatePem: string;
  readonly caPem: string;
  /** For a sandbox: what its init registers with (I-13), once. */
  readonly bootstrapToken: string;
}

interface Waiting {
  readonly request: link.SigningRequest;
  readonly resolve: (signed: Signed) => void;
  readonly reject: (error: unknown) => void;
}

/** Signing requests over the link. Pending ones are sent again on each new stream. */
export class Signer {
  readonly #clock: Clock;
  readonly #waiting = new Map<string, Waiting>();
  #send: ((request: link.SigningRequest) => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** A stream is open. Undefined: it ended. */
  connected(send: ((request: link.SigningRequest) => void) | undefined): void {
    this.#send = send;
    if (send !== undefined) for (const { request } of this.#waiting.values()) send(request);
  }

  /** @throws {DroverError} unavailable when no answer came in time, cancelled, queue-full, and what the control plane refuses with */
  async sign(subject: link.SigningRequest['subject'], csrDer: Uint8Array, signal: AbortSignal): Promise<Signed> {
    if (signal.aborted) throw DroverError.from(signal.reason, 'cancelled');
    if (this.#waiting.size >= signingsPerHost) {
      throw new DroverError('queue-full', `${this.#waiting.size} certificate requests are pending`, { hint: 'try again in a moment' });
    }
    const request = create(link.SigningRequestSchema, { requestId: newId('sign'), csrDer, subject });
    const { promise, resolve, reject } = Promise.withResolvers<Signed>();
    const cancelled = (): void => reject(DroverError.from(signal.reason, 'cancelled'));
    signal.addEventListener('abort', cancelled, { once: true });
    this.#waiting.set(request.requestId, { request, resolve, reject });
    const stopTimer = after(signingTimeoutMs, this.#clock, () =>
      reject(
        new DroverError('unavailable', 'the control plane did not sign the certificate in time', {
          hint: 'see that this host is connected: `drover host ls`',
        }),
      ),
    );
    try {
      this.#send?.(request);
      return await promise;
    } finally {
      this.#waiting.delete(request.requestId);
      signal.removeEventListener('abort', cancelled);
      stopTimer();
    }
  }

  answered(response: link.SigningResponse): void {
    const waiting = this.#waiting.get(response.requestId);
    if (waiting === undefined) return; // its caller does not wait any more
    const { certificatePem, caPem, bootstrapToken, error } = response;
    if (error === undefined) waiting.resolve({ certificatePem, caPem, bootstrapToken });
    else waiting.reject(errorFromWire(error));
  }
}
