import { hasCode, type Clock, type HostId, type Logger } from '@drover/foundation';
import type { Names } from '@drover/pki';
import { link } from '@drover/protocol';
import { status } from '@grpc/grpc-js';
import { firstFrameMs, goAwayGraceMs } from '../limits.ts';
import type { HandshakeLimiter } from './handshake-limiter.ts';
import { endWith, writeGoAway, type ConnectCall, type HostLink } from './host-link.ts';
import { hostOf } from './peer.ts';
import type { AcceptRamp } from './ramp.ts';
import type { Registrations } from './registrations.ts';

export interface StreamAcceptorOptions {
  readonly names: Names;
  readonly ramp: AcceptRamp;
  readonly registrations: Registrations;
  readonly handshakes: HandshakeLimiter;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Aborts when the server stops. */
  readonly signal: AbortSignal;
  /** Makes a registered stream the current one of its host. Undefined: the stream was refused. */
  readonly registered: (call: ConnectCall, registered: Registered) => HostLink | undefined;
  /** Handles every frame after Register. */
  readonly receive: (held: HostLink, frame: link.HostFrame['frame']) => void;
  readonly ended: (link: HostLink) => void;
}

export interface Registered {
  readonly hostId: HostId;
  readonly epoch: number;
  readonly peer: string;
  readonly registration: link.Register;
}

/** Accepts the streams of hosts. Checks the certificate, the first frame, the ramp and the store, in this order (L-5, L-6, L-12, L-4). */
export class StreamAcceptor {
  readonly #options: StreamAcceptorOptions;
  /** Unregistered streams, with the time of their call. */
  readonly #unregistered = new Map<ConnectCall, number>();
  #refusedByRamp = 0;

  constructor(options: StreamAcceptorOptions) {
    this.#options = options;
  }

  get refusedByRamp(): number {
    return this.#refusedByRamp;
  }

  /** Accepts one Connect call. */
  accept(call: ConnectCall): void {
    const { names, clock, handshakes, signal, receive, ended } = this.#options;
    const peer = call.getPeer();
    handshakes.called(peer);
    const certified = hostOf(call, names, clock.now());
    if (certified === undefined) {
      endWith(call, status.PERMISSION_DENIED, 'the certificate names no host');
      // The same CA issues certificates of sandboxes, whose connections must not stay open.
      return handshakes.close(peer, goAwayGraceMs);
    }
    if (signal.aborted) return endWith(call, status.UNAVAILABLE, 'the control plane stops');
    this.#unregistered.set(call, clock.now());
    let held: HostLink | undefined;
    const end = (): void => {
      this.#unregistered.delete(call);
      if (held !== undefined) ended(held);
    };
    call.on('cancelled', end);
    call.on('end', () => {
      end();
      call.end();
    });
    call.on('data', ({ frame }: link.HostFrame) => {
      if (held !== undefined) return receive(held, frame);
      if (!this.#unregistered.delete(call)) return;
      // L-6: the first frame is Register, or the stream ends.
      if (frame.case !== 'register') return endWith(call, status.INVALID_ARGUMENT, 'the first frame must be Register');
      // L-5: the certificate names the host.
      if (frame.value.hostId !== certified) return endWith(call, status.PERMISSION_DENIED, 'the certificate is for another host');
      call.pause();
      void this.#register(call, certified, peer, frame.value).then((registered) => {
        held = registered;
        if (held !== undefined && call.cancelled) ended(held);
        call.resume();
      });
    });
  }

  /** Never rejects; undefined when the stream was refused. */
  async #register(call: ConnectCall, hostId: HostId, peer: string, registration: link.Register): Promise<HostLink | undefined> {
    const { ramp, registrations, clock, registered } = this.#options;
    const delayMs = ramp.admit(clock.now());
    if (delayMs > 0) {
      this.#refusedByRamp++;
      writeGoAway(call, { reason: link.GoAway_Reason.BUSY, message: 'many hosts reconnect at the same time', reconnectAfterMs: delayMs });
      endWith(call, status.UNAVAILABLE, 'many hosts reconnect at the same time');
      return undefined;
    }
    try {
      const { epoch } = await registrations.register(registration);
      return registered(call, { hostId, epoch, peer, registration });
    } catch (error) {
      this.#refuse(call, hostId, peer, error);
      return undefined;
    }
  }

  #refuse(call: ConnectCall, hostId: HostId, peer: string, error: unknown): void {
    const { handshakes, logger } = this.#options;
    if (hasCode(error, 'host-removed')) {
      // L-4: a removed host is refused, even while its certificate is valid.
      writeGoAway(call, { reason: link.GoAway_Reason.REMOVED, message: 'the host was removed' });
      endWith(call, status.PERMISSION_DENIED, 'the host was removed');
      handshakes.close(peer, goAwayGraceMs);
    } else if (hasCode(error, 'host-not-found')) {
      endWith(call, status.PERMISSION_DENIED, 'the host is unknown here');
    } else {
      logger.error({ err: error, hostId }, 'a host could not be registered');
      endWith(call, status.UNAVAILABLE, 'the host could not be registered');
    }
  }

  /** Called by the loop of the hub. */
  sweep(now: number): void {
    for (const [call, since] of this.#unregistered) {
      if (now - since < firstFrameMs) continue;
      this.#unregistered.delete(call);
      endWith(call, status.DEADLINE_EXCEEDED, 'Register did not arrive in time');
      this.#options.handshakes.close(call.getPeer(), goAwayGraceMs);
    }
  }

  /** Ends the unregistered streams. */
  close(): void {
    for (const call of this.#unregistered.keys()) endWith(call, status.UNAVAILABLE, 'the control plane stops');
  }
}
