import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { BoundedQueue, DroverError, clip, type Logger } from '@drover/foundation';
import { errorFromWire, init } from '@drover/protocol';
import { driftsLogged, maxInitErrorLength, sessionQueueFrames } from '../../limits.ts';
import type { InitClient } from './connect.ts';

export type RequestPayload = NonNullable<MessageInitShape<typeof init.SessionRequestSchema>['payload']>;
export type ResponsePayload = Exclude<init.SessionResponse['payload'], { case: undefined }>;
export type ResponseCase = ResponsePayload['case'];
export type ResponseOf<Case extends ResponseCase> = Extract<ResponsePayload, { readonly case: Case }>['value'];

/** How a session stream ended. */
export interface SessionEnd {
  /** True: the main process exited, and the sandbox ended with it. False: the stream broke. */
  readonly mainExited: boolean;
  readonly reason: string;
}

/** The stream ended before the response to a request arrived. */
export class StreamLost extends DroverError {
  readonly mainExited: boolean;

  constructor({ mainExited, reason }: SessionEnd) {
    super('session-unavailable', reason);
    this.mainExited = mainExited;
  }
}

export interface StreamHooks {
  /** A frame arrived. */
  readonly received: () => void;
  /** A frame with an unknown request id was dropped (I-33). */
  readonly dropped: () => void;
  readonly logger: Logger;
}

interface Request {
  readonly expected: ResponseCase;
  readonly onPart: ((part: ResponsePayload) => void) | undefined;
  readonly resolve: (value: ResponsePayload['value']) => void;
  readonly reject: (error: Error) => void;
}

/** One Session stream, on which requests and responses are matched by id. */
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
   * Sends a request and waits for its response. `onPart` receives the interim responses of a step.
   * @throws {DroverError} the error that init returned; protocol-violation for any response other than `expected`; queue-full
   * @throws {StreamLost} the stream ended first
   */
  async request<Case extends ResponseCase>(
    payload: RequestPayload,
    expected: Case,
    onPart?: (part: ResponsePayload) => void,
  ): Promise<ResponseOf<Case>> {
    if (this.#end !== undefined) throw new StreamLost(this.#end);
    if (this.#requests.size >= sessionQueueFrames) {
      throw new DroverError('queue-full', `${this.#requests.size} requests already wait for responses of the sandbox`, {
        hint: 'it does not respond; `drover sandbox get` shows its state',
      });
    }
    const id = this.#nextId++;
    const response = Promise.withResolvers<ResponsePayload['value']>();
    this.#sending.push(create(init.SessionRequestSchema, { id, payload }));
    this.#requests.set(id, { expected, onPart, resolve: response.resolve, reject: response.reject });
    // A caller that awaits a rejected request late must not cause an unhandled rejection.
    response.promise.catch(() => undefined);
    return (await response.promise) as ResponseOf<Case>;
  }

  /**
   * Sends and receives until the stream ends. Rejects the pending requests before it returns or throws.
   * @throws {Error} when the stream breaks, with a message of bounded length
   */
  async run(signal: AbortSignal): Promise<SessionEnd> {
    let end: SessionEnd = { mainExited: false, reason: 'the sandbox ended the session' };
    try {
      // The request stream stays open for the life of the sandbox: its end reports to init that this side has disconnected.
      for await (const response of this.#client.session(this.#sending, { signal })) {
        this.#hooks.received();
        if (response.id === 0n) {
          if (response.payload.case === 'mainExited') {
            end = { mainExited: true, reason: `the main process exited with ${response.payload.value.exit?.code ?? '?'}` };
            return end;
          }
          this.#drift(response, 'an unknown notice');
        } else {
          this.#handleResponse(response);
        }
      }
      return end;
    } catch (error) {
      // The peer controls the text and its length.
      end = { mainExited: false, reason: clip(error instanceof Error ? error.message : String(error), maxInitErrorLength) };
      throw new Error(end.reason, { cause: error });
    } finally {
      this.#end = end;
      this.#sending.end();
      for (const { reject } of this.#requests.values()) reject(new StreamLost(end));
      this.#requests.clear();
    }
  }

  #handleResponse(response: init.SessionResponse): void {
    const { id, error, payload } = response;
    const request = this.#requests.get(id);
    // I-33: a response with an unknown id is dropped, and one with an unknown payload is logged; neither ends the session.
    if (request === undefined) return this.#hooks.dropped();
    if (error !== undefined) {
      this.#requests.delete(id);
      return request.reject(errorFromWire(error, { maxLength: maxInitErrorLength }));
    }
    if (payload.case === undefined) return this.#drift(response, 'an unknown response');
    if (payload.case === request.expected) {
      this.#requests.delete(id);
      return request.resolve(payload.value);
    }
    if (request.onPart !== undefined && (payload.case === 'stepStarted' || payload.case === 'stepOutput')) return request.onPart(payload);
    this.#requests.delete(id);
    request.reject(new DroverError('protocol-violation', `the sandbox responded with ${payload.case} instead of ${request.expected}`));
  }

  /** Logs only the first unknown frames: a sandbox can send any number. */
  #drift({ id, payload }: init.SessionResponse, what: string): void {
    if (++this.#drifted > driftsLogged) return;
    this.#hooks.logger.warn({ id: String(id), payload: payload.case ?? 'unknown' }, `protocol drift: the sandbox sent ${what}`);
  }
}
