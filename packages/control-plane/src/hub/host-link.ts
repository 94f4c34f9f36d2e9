import { create, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { DroverError, inTime, newId, type Clock, type HostId, type SandboxId } from '@drover/foundation';
import { errorFromWire, link } from '@drover/protocol';
import { commandsPerHost } from '@drover/spec';
import type { Metadata, ServerDuplexStream } from '@grpc/grpc-js';
import { linkQueueBytes, linkQueueFrames } from '../limits.ts';
import type { CallOptions, Observation, Operation, ResultValue } from './hub.ts';

/** The server's side of Connect. It receives frames, and sends serialized ones, so that the queue can be bounded in bytes. */
export type ConnectCall = ServerDuplexStream<link.HostFrame, Buffer>;

interface Pending {
  readonly result: Promise<ResultValue>;
  readonly resolve: (value: ResultValue) => void;
  readonly reject: (error: DroverError) => void;
  readonly onProgress: CallOptions['onProgress'];
  /** The number of callers. A repeated command joins the pending one. */
  waiters: number;
}

/**
 * One registered stream of one host: its outgoing frames and its pending commands. It does not share state with other streams of the
 * same host, so its end cannot affect them (L-11).
 */
export class HostLink {
  readonly hostId: HostId;
  readonly epoch: number;
  readonly peer: string;
  /** The arrival of the last frame. Milliseconds since the epoch. */
  lastSeen: number;
  /** The latest observations that are not stored yet, by sandbox. */
  observed: Map<SandboxId, Observation> | undefined;
  storing = false;
  /** Events that are not stored yet. */
  readonly hostEvents: link.HostEvent[] = [];
  /** By sandbox, the number of its events that may still be stored until a time. Milliseconds since the epoch. */
  readonly eventBudgets = new Map<string, { left: number; readonly until: number }>();
  /** The loop that stores the events; undefined while there are none. */
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
   * Sends one frame, in order. Frames for a slow host wait in the buffer of the stream, which is bounded here (L-17).
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

  /** Sends a command and waits for its result. The signal and the deadline end only the wait, not the command (L-21). */
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
      // A failure after the last caller has cancelled must not be an unhandled rejection.
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
    const done = new AbortController();
    const { signal } = options;
    const onAbort = (): void => done.abort(DroverError.from(signal?.reason, 'cancelled'));
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      return await Promise.race([entry.result, this.#deadline(options, clock, done.signal)]);
    } finally {
      signal?.removeEventListener('abort', onAbort);
      done.abort(inTime);
      // A result that arrives after its last caller has cancelled is dropped and counted as late (L-14).
      if (--entry.waiters === 0 && pending.get(id) === entry) pending.delete(id);
    }
  }

  /** Rejects at the caller's deadline, or with the reason of `done`. */
  async #deadline({ deadline }: CallOptions, clock: Clock, done: AbortSignal): Promise<never> {
    if (deadline === undefined) {
      return await new Promise<never>((_, reject) => done.addEventListener('abort', () => reject(done.reason as Error), { once: true }));
    }
    await clock.sleep(Math.max(0, deadline.getTime() - clock.now()), done);
    throw new DroverError('timed-out', `host ${this.hostId} did not respond in time`, {
      hint: 'it continues the work; repeat the command to learn its outcome',
    });
  }

  /** @returns whether a caller waited for the result; false for a duplicate, late or unknown one (L-14) */
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
   * Ends the stream: aborts its signal, and fails its callers immediately (L-16). Sends `goAway` if the queue has room for it.
   */
  end(
    reason: string,
    goAway?: MessageInitShape<typeof link.GoAwaySchema>,
    status?: { readonly code: number; readonly details: string },
  ): void {
    if (this.#ended !== undefined) return;
    if (goAway !== undefined && this.#call.writableLength < linkQueueFrames + 1) writeGoAway(this.#call, goAway);
    this.#ended = new DroverError('host-unavailable', `host ${this.hostId} is not connected: ${reason}`, {
      hint: 'it reconnects automatically; `drover host ls` shows its state',
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

/** Ends a call with a status other than OK, which grpc-js expects as an error event. Earlier writes are sent first. */
export function endWith(call: { emit(event: 'error', error: object): boolean }, code: number, details: string, metadata?: Metadata): void {
  call.emit('error', Object.assign(new Error(details), { code, details, ...(metadata === undefined ? {} : { metadata }) }));
}

function timestampOf(date: Date): { seconds: bigint; nanos: number } {
  const ms = date.getTime();
  const seconds = Math.floor(ms / 1000);
  return { seconds: BigInt(seconds), nanos: (ms - seconds * 1000) * 1_000_000 };
}

function ignore(): void {}
