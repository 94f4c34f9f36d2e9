/** Limits of the SDK. docs/limits.md lists them. */

/** The largest message that the client reads, bytes. A larger one fails the call with too-large. */
export const maxMessageBytes = 8 * 1024 * 1024;
/** Bytes of stdin or of a forwarded connection in one message. Longer ones are cut up. */
export const chunkBytes = 64 * 1024;
/** The same of a tar: fewer messages are faster. */
export const copyChunkBytes = 256 * 1024;
/** Input messages waiting to be sent on one exec. When it is full, stdin stops taking bytes. */
export const execInputQueue = 64;
/** How long an exec looks for its process again after the connection broke, ms. Then it fails with the connection's error. */
export const execReattachMs = 60_000;
/** Input sent this short before a break may not have arrived, ms: an exec without a terminal then fails instead of guessing. */
export const stdinSettledMs = 10_000;
/** How long a watch or a wait looks for the server again without an answer, ms. Then it fails with the connection's error. */
export const watchReconnectMs = 300_000;
/**
 * How long `waitReady` waits from the start of a sandbox for the end of its init plan, ms. The plan's steps, the dial and the
 * registration have limits of their own, which come to less. Then it fails with timed-out.
 */
export const planWaitMs = 15 * 60_000;
/** Tries of a call whose answer was lost; each carries the same idempotency key (L-20). Then it fails with the connection's error. */
export const callTries = 5;
/** First and longest delay between two tries, ms; full jitter. */
export const retryBaseMs = 100;
export const retryCapMs = 3_000;
/** How long fetching the server's CA certificate may take, ms. */
export const caFetchTimeoutMs = 10_000;
/** A connection with open streams is probed this often, ms, and counts as broken when no answer comes in the second time. */
export const pingIntervalMs = 15_000;
export const pingTimeoutMs = 10_000;
