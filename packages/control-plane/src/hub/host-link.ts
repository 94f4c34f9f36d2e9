import { create, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { DroverError, inTime, newId, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import { errorFromWire, link } from '@drover/protocol';
import { commandsPerHost } from '@drover/spec';
import type { Metadata, ServerDuplexStream } from '@grpc/grpc-js';
import { linkQueueBytes, linkQueueFrames } from '../limits.ts';
import type { CallOptions, Observation, Operation, ResultValue } from './hub.ts';

/** The server's side of Connect: frames in, serialized frames out (so that what waits can be counted in bytes). */
export type ConnectCall = ServerDuplexStream<link.HostFrame, Buffer>;

interface Pending {
  readonly result: Promise<ResultValue>;
  readonly resolve: (value: ResultValue) => void;
  readonly reject: (error: DroverError) => void;
  readonly onProgress: CallOptions['onProgress'];
  /** Callers: a repeated command joins the one that is under way. */
  waiters: number;
}

/**
 * One registered stream of one host: what it is sent, and which commands wait for it. It knows nothing of other streams of
 * the same host, so that its end cannot touch theirs (L-11).
 */
export class HostLink {
  readonly hostId: HostId;
  readonly epoch: number;
  readonly peer: string;
  /** When a frame last came. Milliseconds since the epoch. */
  lastSeen: number;
  /** Latest observations that the store has not taken yet, by sandbox. */
  observed: Map<SandboxId, Observation> | undefined;
  storing = false;
  /** Events that the store has not taken yet, and the loop that stores them. */
  readonly hostEvents: link.HostEvent[] = [];
  /** By sandbox, how many more of its events are stored until when. Milliseconds since the epoch. */
  readonly eventBudgets = new Map<string, { left: number; readonly until: number }>();
  storingEvents: Promise<void> | undefined;
  signings = 0;
  readonly #call: ConnectCall;
  readonly #life = new AbortController();
  #pending: Map<string, Pending> | undefined;
  #queuedBytes = 0;
  #ended: DroverError | undefined;

  constructor(call: ConnectCall, hostId: HostId, epoch: number, peer: string, now: number) {
    this.#call = call;
    this.hostId = hostId;
    this.epoch = epoch;
    this.peer = peer;
    this.lastSeen = now;
  }

  /** Aborts when this stream ended or was superseded. */
  get signal(): AbortSignal {
    return this.#life.signal;
  }

  get pendingCommands(): number {
    return this.#pending?.size ?? 0;
  }

  get ended(): boolean {
    return this.#ended !== undefined;
  }

  pause(): void {
    this.#call.pause();
  }

  resume(): void {
    this.#call.resume();
  }

  /**
   * Sends one frame, after those before it. What a slow host has not taken waits in the stream's own buffer, which is bounded
   * here (L-17).
   * @throws {DroverError} queue-full, host-unavailable
   */
  send(frame: MessageInitShape<typeof link.ControlFrameSchema>['frame'] & object): void {
    if (this.#ended !== undefined) throw this.#ended;
    const bytes = toBinary(link.ControlFrameSchema, create(link.ControlFrameSchema, { frame }));
    if (this.#call.writableLength >= linkQueueFrames || this.#queuedBytes + bytes.length > linkQueueBytes) {
      throw new DroverError('queue-full', `host ${this.hostId} is slow: ${this.#call.writableLength} messages wait for it`, {
        hint: 'try again in a moment',
      });
    }
    this.#queuedBytes += bytes.length;
    this.#call.write(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length), () => {
      this.#queuedBytes -= bytes.length;
    });
  }

  /** Sends a command and waits for its result; the signal and the deadline end the waiting only (L-21). */
  async command(operation: Operation, options: CallOptions, clock: Clock): Promise<ResultValue> {
    if (options.signal?.aborted === true) throw DroverError.from(options.signal.reason, 'cancelled');
    const id = options.commandId ?? newId('c');
    const pending = (this.#pending ??= new Map<string, Pending>());
    let entry = pending.get(id);
    if (entry === undefined) {
      if (pending.size >= commandsPerHost) {
        throw new DroverError('queue-full', `${pending.size} commands wait for host ${this.hostId}`, { hint: 'try again in a moment' });
      }
      const { promise, resolve, reject } = Promise.withResolvers<ResultValue>();
      // Every caller may be gone when it fails.
      promise.catch(ignore);
      entry = { result: promise, resolve, reject, onProgress: options.onProgress, waiters: 0 };
      pending.set(id, entry);
      try {
        this.send({
          case: 'command',
          value: create(link.CommandSchema, {
            id,
            operation,
            ...(options.deadline === undefined ? {} : { deadline: timestampOf(options.deadline) }),
          }),
        });
      } catch (error) {
        pending.delete(id);
        entry.reject(DroverError.from(error));
        throw error;
      }
    }
    entry.waiters++;
    if (options.signal === undefined && options.deadline === undefined) return await entry.result;
    const over = new AbortController();
    const { signal } = options;
    const gone = (): void => over.abort(DroverError.from(signal?.reason, 'cancelled'));
    signal?.addEventListener('abort', gone, { once: true });
    try {
      return await Promise.race([entry.result, this.#patience(options, clock, over.signal)]);
    } finally {
      signal?.removeEventListener('abort', gone);
      over.abort(inTime);
      // A result that comes after its caller has gone is counted as late and dropped (L-14).
      if (--entry.waiters === 0 && pending.get(id) === entry) pending.delete(id);
    }
  }

  /** Rejects when the caller's deadline comes, or with the reason of `over`. */
  async #patience({ deadline }: CallOptions, clock: Clock, over: AbortSignal): Promise<never> {
    if (deadline === undefined) {
      return await new Promise<never>((_, reject) => over.addEventListener('abort', () => reject(over.reason as Error), { once: true }));
    }
    await clock.sleep(Math.max(0, deadline.getTime() - clock.now()), over);
    throw new DroverError('timed-out', `host ${this.hostId} did not answer in time`, {
      hint: 'the work goes on there; ask again for its outcome',
    });
  }

  /** Says whether somebody waited for it; a duplicate, late or unknown result finds nobody (L-14). */
  settle(result: link.CommandResult): boolean {
    const entry = this.#pending?.get(result.commandId);
    if (entry === undefined) return false;
    this.#pending?.delete(result.commandId);
    if (result.error === undefined) entry.resolve(result.value);
    else entry.reject(errorFromWire(result.error));
    return true;
  }

  progress(progress: link.CommandProgress): void {
    this.#pending?.get(progress.commandId)?.onProgress?.(progress);
  }

  /**
   * Ends this stream's part in everything: its signal aborts and its callers fail at once (L-16). With `goAway` the host is
   * told why, if its queue still takes it.
   */
  end(
    reason: string,
    goAway?: MessageInitShape<typeof link.GoAwaySchema>,
    status?: { readonly code: number; readonly details: string },
  ): void {
    if (this.#ended !== undefined) return;
    if (goAway !== undefined && this.#call.writableLength < linkQueueFrames + 1) writeGoAway(this.#call, goAway);
    this.#ended = new DroverError('host-unavailable', `host ${this.hostId} is not connected: ${reason}`, {
      hint: 'it reconnects by itself; `drover host ls` shows its state',
    });
    const waiting = this.#pending;
    this.#pending = undefined;
    if (waiting !== undefined) for (const entry of waiting.values()) entry.reject(this.#ended);
    this.#life.abort(this.#ended);
    if (status === undefined) this.#call.end();
    else endWith(this.#call, status.code, status.details);
  }
}

export function writeGoAway(call: ConnectCall, goAway: MessageInitShape<typeof link.GoAwaySchema>): void {
  const frame = create(link.ControlFrameSchema, { frame: { case: 'goAway', value: create(link.GoAwaySchema, goAway) } });
  call.write(Buffer.from(toBinary(link.ControlFrameSchema, frame)));
}

/** Ends a call with a status other than OK; grpc-js takes it as an error event. What was written before it is sent first. */
export function endWith(call: { emit(event: 'error', error: object): boolean }, code: number, details: string, metadata?: Metadata): void {
  call.emit('error', Object.assign(new Error(details), { code, details, ...(metadata === undefined ? {} : { metadata }) }));
}

function timestampOf(date: Date): { seconds: bigint; nanos: number } {
  const ms = date.getTime();
  const seconds = Math.floor(ms / 1000);
  return { seconds: BigInt(seconds), nanos: (ms - seconds * 1000) * 1_000_000 };
}

function ignore(): void {}
