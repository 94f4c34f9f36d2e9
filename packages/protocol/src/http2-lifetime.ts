import { subscribe } from 'node:diagnostics_channel';
import type { Http2Session, Http2Stream } from 'node:http2';

/**
 * Loading this module keeps the native part of each HTTP/2 session of the process until the streams of the session have been collected.
 *
 * Without it a peer can abort the process (Node 26.10: "Assertion failed: (current_nghttp2_memory_) == (0)" in ~Http2Session). A stream
 * holds the header fields that it has received of a block until the block is complete and accepted. A peer leaves fields there with a
 * block that never ends, and equally with a complete block that is refused after its first field, such as trailers without END_STREAM.
 * A stream that is destroyed while its data is being written is left to the garbage collector, and so is its session. If the collector
 * frees the session first, those fields are still allocated from the session's memory, and the assertion fails.
 * Keeping the session fixes the order for every listener and client, regardless of the peer: docs/decisions/0008-http2-peers.md.
 */
const collected = new FinalizationRegistry<unknown>(() => undefined);

/** The registry refers to a session's native part until `stream` is collected, which is never before the native part of `stream` is. */
function keepSession(message: unknown): void {
  const { stream } = message as { readonly stream: Http2Stream };
  if (stream.session !== undefined) collected.register(stream, nativePart(stream.session));
}

/** Node has no public name for the native part. The test beside this file fails when a release of Node renames the symbol. */
export function nativePart(session: Http2Session): unknown {
  const symbol = Object.getOwnPropertySymbols(session).find(({ description }) => description === 'kHandle');
  return symbol === undefined ? undefined : (session as unknown as Record<symbol, unknown>)[symbol];
}

// A client's stream has its native part from its start, a server's from its creation.
subscribe('http2.client.stream.start', keepSession);
subscribe('http2.server.stream.created', keepSession);
