import { hasCode, type Clock, type HostId, type Logger } from '@drover/foundation';
import type { Names } from '@drover/pki';
import { link } from '@drover/protocol';
import { status } from '@grpc/grpc-js';
import { firstFrameMs, goAwayGraceMs } from '../limits.ts';
import type { Doorway } from './doorway.ts';
import { endWith, writeGoAway, type ConnectCall, type HostLink } from './host-link.ts';
import { hostOf } from './peer.ts';
import type { AcceptRamp } from './ramp.ts';
import type { Registrations } from './registrations.ts';

export interface EntranceOptions {
  readonly names: Names;
  readonly ramp: AcceptRamp;
  readonly registrations: Registrations;
  readonly doorway: Doorway;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Aborts when the server stops. */
  readonly signal: AbortSignal;
  /** The store has it registered: makes it the host's current stream. Undefined: it was sent away. */
  readonly enter: (call: ConnectCall, registered: Registered) => HostLink | undefined;
  /** Every frame after Register. */
  readonly receive: (held: HostLink, frame: link.HostFrame['frame']) => void;
  readonly over: (held: HostLink) => void;
}

export interface Registered {
  readonly hostId: HostId;
  readonly epoch: number;
  readonly peer: string;
  readonly registration: link.Register;
}

/** What a stream passes on its way in: certificate, first frame, ramp, store (L-5, L-6, L-12, L-4). */
export class Entrance {
  readonly #options: EntranceOptions;
  /** Streams that have not registered, with when they came. */
  readonly #strangers = new Map<ConnectCall, number>();
  #refusedByRamp = 0;

  constructor(options: EntranceOptions) {
    this.#options = options;
  }

  get refusedByRamp(): number {
    return this.#refusedByRamp;
  }

  /** One Connect call. */
  accept(call: ConnectCall): void {
    const { names, clock, doorway, signal, receive, over } = this.#options;
    const peer = call.getPeer();
    doorway.called(peer);
    const certified = hostOf(call, names, clock.now());
    if (certified === undefined) {
      endWith(call, status.PERMISSION_DENIED, 'the certificate names no host');
      // A sandbox's certificate is of the same CA: its call must not make the connection one that may stay.
      return doorway.cut(peer, goAwayGraceMs);
    }
    if (signal.aborted) return endWith(call, status.UNAVAILABLE, 'the control plane stops');
    this.#strangers.set(call, clock.now());
    let held: HostLink | undefined;
    const ended = (): void => {
      this.#strangers.delete(call);
      if (held !== undefined) over(held);
    };
    call.on('cancelled', ended);
    call.on('end', () => {
      ended();
      call.end();
    });
    call.on('data', ({ frame }: link.HostFrame) => {
      if (held !== undefined) return receive(held, frame);
      if (!this.#strangers.delete(call)) return;
      // L-6: registered, or ended.
      if (frame.case !== 'register') return endWith(call, status.INVALID_ARGUMENT, 'the first frame must be Register');
      // L-5: the certificate says who it is.
      if (frame.value.hostId !== certified) return endWith(call, status.PERMISSION_DENIED, 'the certificate is for another host');
      call.pause();
      void this.#register(call, certified, peer, frame.value).then((registered) => {
        held = registered;
        if (held !== undefined && call.cancelled) over(held);
        call.resume();
      });
    });
  }

  /** Never rejects; undefined when the stream was sent away. */
  async #register(call: ConnectCall, hostId: HostId, peer: string, registration: link.Register): Promise<HostLink | undefined> {
    const { ramp, registrations, clock, enter } = this.#options;
    const delayMs = ramp.admit(clock.now());
    if (delayMs > 0) {
      this.#refusedByRamp++;
      writeGoAway(call, { reason: link.GoAway_Reason.BUSY, message: 'many hosts come back at once', reconnectAfterMs: delayMs });
      endWith(call, status.UNAVAILABLE, 'many hosts come back at once');
      return undefined;
    }
    try {
      const { epoch } = await registrations.register(registration);
      return enter(call, { hostId, epoch, peer, registration });
    } catch (error) {
      this.#refuse(call, hostId, peer, error);
      return undefined;
    }
  }

  #refuse(call: ConnectCall, hostId: HostId, peer: string, error: unknown): void {
    const { doorway, logger } = this.#options;
    if (hasCode(error, 'host-removed')) {
      // L-4: on every stream, whatever certificate it still has.
      writeGoAway(call, { reason: link.GoAway_Reason.REMOVED, message: 'the host was removed' });
      endWith(call, status.PERMISSION_DENIED, 'the host was removed');
      doorway.cut(peer, goAwayGraceMs);
    } else if (hasCode(error, 'host-not-found')) {
      endWith(call, status.PERMISSION_DENIED, 'the host is not known here');
    } else {
      logger.error({ err: error, hostId }, 'a host could not be registered');
      endWith(call, status.UNAVAILABLE, 'the host could not be registered');
    }
  }

  /** Called from the hub's one loop. */
  sweep(now: number): void {
    for (const [call, since] of this.#strangers) {
      if (now - since < firstFrameMs) continue;
      this.#strangers.delete(call);
      endWith(call, status.DEADLINE_EXCEEDED, 'Register did not come in time');
      this.#options.doorway.cut(call.getPeer(), goAwayGraceMs);
    }
  }

  /** Ends those that have not registered. */
  close(): void {
    for (const call of this.#strangers.keys()) endWith(call, status.UNAVAILABLE, 'the control plane stops');
  }
}
