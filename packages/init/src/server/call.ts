import type { MessageInitShape, MessageShape } from '@bufbuild/protobuf';
import type { init } from '@drover/protocol';

/** One call: the requests of the client, the responses, and the lifetime. */
export interface Call<I, O> {
  readonly requests: AsyncIterable<I>;
  /** Resolves when the connection accepts more data: awaiting it applies backpressure (I-39). Rejects when the client has disconnected. */
  send(response: O): Promise<void>;
  /** Aborts when the client cancels or the connection is lost. */
  readonly signal: AbortSignal;
}

export type Methods = (typeof init.InitService)['method'];
/** A response of a method; empty fields may be absent. */
export type Reply<K extends keyof Methods> = MessageInitShape<Methods[K]['output']>;
/** The handlers of InitService, by the method's name in the generated code. */
export type Handlers = {
  readonly [K in keyof Methods]: (call: Call<MessageShape<Methods[K]['input']>, Reply<K>>) => Promise<void>;
};
/** A handler of any method. */
export type AnyHandler = (call: Call<never, never>) => Promise<void>;
