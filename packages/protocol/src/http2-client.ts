import { constants, type ClientHttp2Stream, type Http2Session } from 'node:http2';
import { PassThrough } from 'node:stream';
import { Http2SessionManager } from '@connectrpc/connect-node';
import './http2-lifetime.ts';

/**
 * The HTTP/2 connection of a Connect client, whose answers can be read whenever the client comes to it.
 *
 * Connect reads an answer by iterating the stream. When iterating begins, Node 26.10 asks the stream whether it is closed, and an
 * Http2Stream says so as soon as the peer has ended it, also while what it sent waits to be read: an answer that arrives whole
 * in one packet is taken for one that was cut off (ERR_STREAM_PREMATURE_CLOSE). So the answer flows into a stream whose `closed`
 * means what the iterator takes it for.
 */
export class ReadableSessionManager extends Http2SessionManager {
  readonly #guarded = new WeakSet<Http2Session>();

  override async request(...request: Parameters<Http2SessionManager['request']>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...request);
    const { session } = stream;
    if (session !== undefined && !this.#guarded.has(session)) {
      this.#guarded.add(session);
      // The manager removes its listener from a connection that it gives up. An error without a listener would end the process, and a
      // peer decides whether there is one. The calls on the connection report it.
      session.on('error', () => undefined);
    }
    makeIterable(stream);
    return stream;
  }
}

/** Exported for its test. */
export function makeIterable(stream: ClientHttp2Stream): void {
  const answer = new PassThrough();
  // Whoever iterates gets it; without anybody it is nobody's.
  answer.on('error', () => undefined);
  const broken = (): Error => new Error(`the stream was reset before the end of the answer (HTTP/2 code ${stream.rstCode})`);
  stream.on('error', (error) => answer.destroy(error));
  // A reset stream also says `end`, so that nobody waits for more.
  stream.once('end', () => {
    if (stream.aborted || stream.rstCode !== constants.NGHTTP2_NO_ERROR) answer.destroy(broken());
    else answer.end();
  });
  stream.once('close', () => {
    if (!stream.readableEnded) answer.destroy(broken());
  });
  stream.pipe(answer, { end: false });
  Object.defineProperty(stream, Symbol.asyncIterator, { value: () => answer[Symbol.asyncIterator]() });
}
