import { constants, type ClientHttp2Stream, type Http2Session } from 'node:http2';
import { PassThrough } from 'node:stream';
import { Http2SessionManager } from '@connectrpc/connect-node';
import './http2-lifetime.ts';

/**
 * The HTTP/2 connection of a Connect client that reads a response at any later time.
 *
 * Connect reads a response by iterating the stream. An iterator first checks whether the stream is closed, and an Http2Stream of Node 26.10
 * is closed as soon as the peer has ended it, even if data waits to be read: a response that arrives in one packet would fail with
 * ERR_STREAM_PREMATURE_CLOSE. So the response flows into a stream whose `closed` has the meaning that the iterator expects.
 */
export class ReadableSessionManager extends Http2SessionManager {
  readonly #guarded = new WeakSet<Http2Session>();

  override async request(...request: Parameters<Http2SessionManager['request']>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...request);
    const { session } = stream;
    if (session !== undefined && !this.#guarded.has(session)) {
      this.#guarded.add(session);
      // The manager removes its listener from a connection that it abandons. An error without a listener would end the process, and a peer can
      // cause one. The calls on the connection report it.
      session.on('error', () => undefined);
    }
    makeIterable(stream);
    return stream;
  }
}

/** Exported for its test. */
export function makeIterable(stream: ClientHttp2Stream): void {
  const response = new PassThrough();
  // The iterator throws the error. Without an iterator, the error must not end the process.
  response.on('error', () => undefined);
  const broken = (): Error => new Error(`the stream was reset before the end of the response (HTTP/2 code ${stream.rstCode})`);
  stream.on('error', (error) => response.destroy(error));
  // A reset stream also emits `end`.
  stream.once('end', () => {
    if (stream.aborted || stream.rstCode !== constants.NGHTTP2_NO_ERROR) response.destroy(broken());
    else response.end();
  });
  stream.once('close', () => {
    if (!stream.readableEnded) response.destroy(broken());
  });
  stream.pipe(response, { end: false });
  Object.defineProperty(stream, Symbol.asyncIterator, { value: () => response[Symbol.asyncIterator]() });
}
