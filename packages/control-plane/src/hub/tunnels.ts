import { after, DroverError, inTime, newId, type Clock, type HostId } from '@drover/foundation';
import { errorFromWire, TunnelStream, type link } from '@drover/protocol';
import { status, type ServerDuplexStream } from '@grpc/grpc-js';
import type { Duplex } from 'node:stream';
import { firstFrameMs, openingTunnels, tunnelOpenMs } from '../limits.ts';
import { endWith } from './host-link.ts';

export type TunnelServerCall = ServerDuplexStream<link.TunnelFrame, link.TunnelFrame>;

/** Takes over a connection that a sandbox made to its host (spec 2, I-14). */
export type InboundHandler = (hostId: HostId, inbound: link.SandboxInbound, stream: Duplex) => void;

interface Opening {
  readonly hostId: HostId;
  readonly resolve: (stream: Duplex) => void;
  readonly reject: (error: DroverError) => void;
}

/** Pairs the tunnels that hosts open with the callers that wait for them (L-30). */
export class Tunnels {
  readonly #opening = new Map<string, Opening>();
  readonly #clock: Clock;
  readonly #onInbound: InboundHandler | undefined;

  constructor(clock: Clock, onInbound?: InboundHandler) {
    this.#clock = clock;
    this.#onInbound = onInbound;
  }

  get opening(): number {
    return this.#opening.size;
  }

  /**
   * Waits for the tunnel that the host opens in response to `ask`.
   * @throws {DroverError} timed-out, cancelled, queue-full, the error of `ask`, and the host's error if it could not connect
   */
  async open(hostId: HostId, ask: (tunnelId: string, signal: AbortSignal) => Promise<unknown>, signal?: AbortSignal): Promise<Duplex> {
    if (signal?.aborted === true) throw DroverError.from(signal.reason, 'cancelled');
    if (this.#opening.size >= openingTunnels) {
      throw new DroverError('queue-full', `${this.#opening.size} tunnels are being opened already`, { hint: 'try again in a moment' });
    }
    const id = newId('t');
    const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
    const done = new AbortController();
    const fail = (error: unknown, code: 'internal' | 'cancelled'): void => reject(DroverError.from(error, code));
    const cancelled = (): void => fail(signal?.reason, 'cancelled');
    signal?.addEventListener('abort', cancelled, { once: true });
    this.#opening.set(id, { hostId, resolve, reject });
    this.#clock.sleep(tunnelOpenMs, done.signal).then(
      () => reject(new DroverError('timed-out', `host ${hostId} opened no tunnel in time`, { hint: 'try again' })),
      // The tunnel arrived first.
      () => undefined,
    );
    ask(id, done.signal).catch((error: unknown) => fail(error, 'internal'));
    try {
      return await promise;
    } finally {
      this.#opening.delete(id);
      signal?.removeEventListener('abort', cancelled);
      done.abort(inTime);
    }
  }

  /** Accepts one Tunnel call of a connected host. */
  accept(hostId: HostId, call: TunnelServerCall): void {
    const late = (): void => endWith(call, status.DEADLINE_EXCEEDED, 'the first frame did not arrive in time');
    const opened = after(firstFrameMs, this.#clock, late);
    call.once('cancelled', opened);
    call.once('end', opened);
    call.once('data', (first: link.TunnelFrame) => {
      opened();
      call.pause();
      this.#first(hostId, call, first);
    });
  }

  #first(hostId: HostId, call: TunnelServerCall, { frame }: link.TunnelFrame): void {
    if (frame.case !== 'open') return endWith(call, status.INVALID_ARGUMENT, 'the first frame must be TunnelOpen');
    const { direction, error } = frame.value;
    switch (direction.case) {
      case 'tunnelId': {
        const opening = this.#opening.get(direction.value);
        // A host must not learn which tunnels other hosts are to open.
        if (opening?.hostId !== hostId) return endWith(call, status.NOT_FOUND, 'no caller waits for this tunnel');
        this.#opening.delete(direction.value);
        if (error !== undefined) {
          opening.reject(errorFromWire(error));
          call.end();
          return;
        }
        opening.resolve(streamOf(call));
        return;
      }
      case 'inbound':
        if (this.#onInbound === undefined) return endWith(call, status.UNIMPLEMENTED, 'sandboxes cannot dial this control plane');
        return this.#onInbound(hostId, direction.value, streamOf(call));
      case undefined:
        return endWith(call, status.INVALID_ARGUMENT, 'TunnelOpen names no direction');
    }
  }
}

function streamOf(call: TunnelServerCall): TunnelStream {
  const stream = new TunnelStream(call, () => endWith(call, status.ABORTED, 'the tunnel was closed'));
  // A tunnel that breaks before its user attaches a listener must not end the process.
  stream.on('error', () => undefined);
  return stream;
}
