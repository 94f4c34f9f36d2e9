import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { BoundedQueue, DroverError, clip, type Logger } from '@drover/foundation';
import { errorFromWire, init } from '@drover/protocol';
import { driftsLogged, maxInitErrorLength, sessionQueueFrames } from '../../limits.ts';
import type { InitClient } from './connect.ts';

export type RequestPayload = NonNullable<MessageInitShape<typeof init.SessionRequestSchema>['payload']>;
export type AnswerPayload = Exclude<init.SessionResponse['payload'], { case: undefined }>;
export type AnswerCase = AnswerPayload['case'];
export type AnswerOf<Case extends AnswerCase> = Extract<AnswerPayload, { readonly case: Case }>['value'];

/** How a session stream ended. */
export interface SessionEnd {
  /** The main process ended, and the sandbox with it; otherwise the stream broke. */
  readonly mainExited: boolean;
  readonly reason: string;
}

/** The stream ended before the answer to a request came. */
export class StreamLost extends DroverError {
  readonly mainExited: boolean;

  constructor({ mainExited, reason }: SessionEnd) {
    super('session-unavailable', reason);
    this.mainExited = mainExited;
  }
}

export interface StreamHooks {
  /** A frame came. */
  readonly received: () => void;
  /** A frame with the id of no request (I-33). */
  readonly dropped: () => void;
  readonly logger: Logger;
}

interface Request {
  readonly expected: AnswerCase;
  readonly onPart: ((part: AnswerPayload) => void) | undefined;
  readonly resolve: (value: AnswerPayload['value']) => void;
  readonly reject: (error: Error) => void;
}

/** The frames of one Session stream: requests with their answers, by id. */
export class SessionStream {
  readonly #client: InitClient;
  readonly #hooks: StreamHooks;
  readonly #sending = new BoundedQueue<init.SessionRequest>({ name: 'the session of the sandbox', capacity: sessionQueueFrames });
  readonly #requests = new Map<bigint, Request>();
  #nextId = 1n;
  #drifted = 0;
  #end: SessionEnd | undefined;

  constructor(client: InitClient, hooks: StreamHooks) {
    this.#client = client;
    this.#hooks = hooks;
  }

  /**
   * Sends a request and waits for its answer. A step's answers before the last go to `onPart`.
   * @throws {DroverError} the error that init answered; protocol-violation for another answer than `expected`; queue-full
   * @throws {StreamLost} the stream ended first
   */
  async request<Case extends AnswerCase>(
    payload: RequestPayload,
    expected: Case,
    onPart?: (part: AnswerPayload) => void,
  ): Promise<AnswerOf<Case>> {
    if (this.#end !== undefined) throw new StreamLost(this.#end);
    if (this.#requests.size >= sessionQueueFrames) {
      throw new DroverError('queue-full', `${this.#requests.size} requests wait for answers of the sandbox already`, {
        hint: 'it answers none of them; `drover sandbox get` shows its state',
      });
    }
    const id = this.#nextId++;
    const answer = Promise.withResolvers<AnswerPayload['value']>();
    this.#sending.push(create(init.SessionRequestSchema, { id, payload }));
    this.#requests.set(id, { expected, onPart, resolve: answer.resolve, reject: answer.reject });
    // Whoever asked early may come to it late.
    answer.promise.catch(() => undefined);
    return (await answer.promise) as AnswerOf<Case>;
  }

  /**
   * Sends and reads until the end. @throws {Error} when the stream breaks, with the beginning of why; what waits for an answer is told first
   */
  async run(signal: AbortSignal): Promise<SessionEnd> {
    let end: SessionEnd = { mainExited: false, reason: 'the sandbox ended the session' };
    try {
      // The requests stay open for the sandbox's life: their end is how either side learns of the other's.
      for await (const response of this.#client.session(this.#sending, { signal })) {
        this.#hooks.received();
        if (response.id === 0n) {
          if (response.payload.case === 'mainExited') {
            end = { mainExited: true, reason: `the main process exited with ${response.payload.value.exit?.code ?? '?'}` };
            return end;
          }
          this.#drift(response, 'a notice that is not known');
        } else {
          this.#answered(response);
        }
      }
      return end;
    } catch (error) {
      // It is in the peer's words, which are as many as it likes.
      end = { mainExited: false, reason: clip(error instanceof Error ? error.message : String(error), maxInitErrorLength) };
      throw new Error(end.reason, { cause: error });
    } finally {
      this.#end = end;
      this.#sending.end();
      for (const { reject } of this.#requests.values()) reject(new StreamLost(end));
      this.#requests.clear();
    }
  }

  #answered(response: init.SessionResponse): void {
    const { id, error, payload } = response;
    const request = this.#requests.get(id);
    // I-33: nobody's answer ends nothing; neither does one that an init of another version gives.
    if (request === undefined) return this.#hooks.dropped();
    if (error !== undefined) {
      this.#requests.delete(id);
      return request.reject(errorFromWire(error, { maxLength: maxInitErrorLength }));
    }
    if (payload.case === undefined) return this.#drift(response, 'an answer that is not known');
    if (payload.case === request.expected) {
      this.#requests.delete(id);
      return request.resolve(payload.value);
    }
    if (request.onPart !== undefined && (payload.case === 'stepStarted' || payload.case === 'stepOutput')) return request.onPart(payload);
    this.#requests.delete(id);
    request.reject(new DroverError('protocol-violation', `the sandbox answered with ${payload.case} instead of ${request.expected}`));
  }

  /** A sandbox may send as many as it likes: the first ones are logged. */
  #drift({ id, payload }: init.SessionResponse, what: string): void {
    if (++this.#drifted > driftsLogged) return;
    this.#hooks.logger.warn({ id: String(id), payload: payload.case ?? 'unknown' }, `protocol drift: the sandbox sent ${what}`);
  }
}
