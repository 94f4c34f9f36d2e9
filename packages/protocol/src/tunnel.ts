import { create } from '@bufbuild/protobuf';
import { Duplex } from 'node:stream';
import { maxTunnelFrameBytes } from './limits.ts';
import { TunnelFrameSchema, type TunnelFrame } from './generated/drover/link/v1/link_pb.ts';

/** The common part of both ends of a gRPC stream of TunnelFrames. */
export interface TunnelCall {
  write(frame: TunnelFrame, done?: (error?: Error | null) => void): boolean;
  end(): unknown;
  pause(): unknown;
  resume(): unknown;
  on(event: string, listener: (...args: unknown[]) => void): unknown;
}

/**
 * The bytes of one tunnel after its TunnelOpen, as a Node stream (L-30).
 * A write finishes when the transport has accepted the frame, and the transport is read only while this stream is read: backpressure applies
 * end to end. `end()` half-closes; `destroy()` cuts both directions on both sides.
 */
export class TunnelStream extends Duplex {
  readonly #call: TunnelCall;
  readonly #cut: () => void;
  #endSent = false;
  #endReceived = false;
  #closed = false;

  /** @param cut ends the call immediately */
  constructor(call: TunnelCall, cut: () => void) {
    super({ allowHalfOpen: true });
    this.#call = call;
    this.#cut = cut;
    call.on('data', (frame) => this.#receive(frame as TunnelFrame));
    call.on('end', () => this.#lost());
    call.on('cancelled', () => this.#lost());
    call.on('error', () => this.#lost());
    call.on('close', () => this.#lost());
  }

  #receive({ frame }: TunnelFrame): void {
    if (this.#endReceived || this.destroyed) return;
    if (frame.case === 'data') {
      if (!this.push(frame.value)) this.#call.pause();
    } else if (frame.case === 'end') {
      this.#endReceived = true;
      this.push(null);
      this.#closeWhenDone();
    } else {
      this.destroy(new Error('the other end of the tunnel sent a frame that is neither data nor an end'));
    }
  }

  override _read(): void {
    this.#call.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#send(chunk, 0, done);
  }

  #send(chunk: Buffer, from: number, done: (error?: Error | null) => void): void {
    if (this.#closed) return done(lost());
    const to = from + maxTunnelFrameBytes;
    const frame = create(TunnelFrameSchema, { frame: { case: 'data', value: chunk.subarray(from, to) } });
    this.#call.write(frame, (error) => {
      if (error != null) done(error);
      else if (to < chunk.length) this.#send(chunk, to, done);
      else done();
    });
  }

  override _final(done: (error?: Error | null) => void): void {
    if (this.#closed) return done(lost());
    this.#call.write(create(TunnelFrameSchema, { frame: { case: 'end', value: true } }), () => {
      this.#endSent = true;
      done();
      this.#closeWhenDone();
    });
  }

  /** Both directions are finished: the call can end as a success. */
  #closeWhenDone(): void {
    if (!this.#endSent || !this.#endReceived || this.#closed) return;
    this.#closed = true;
    this.#call.end();
  }

  /** The call has ended. Unless both sides have sent their end, bytes may be missing, which must not look like an end. */
  #lost(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#endReceived && this.#endSent) return;
    // The peer has sent everything and accepts nothing more: deliver the rest to the reader before the error.
    if (this.#endReceived && !this.readableEnded) this.once('end', () => this.destroy(lost()));
    else this.destroy(lost());
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    if (!this.#closed) {
      this.#closed = true;
      this.#cut();
    }
    done(error);
  }
}

function lost(): Error {
  return Object.assign(new Error('the tunnel was cut'), { code: 'ECONNRESET' });
}
