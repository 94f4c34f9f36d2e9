/** Limits of the SDK. docs/limits.md lists them. */

/** The largest message that the client reads, bytes. A larger one fails the call with too-large. */
export const maxMessageBytes = 8 * 1024 * 1024;
/** Bytes of stdin or of a forwarded connection in one message. Larger chunks are split. */
export const chunkBytes = 64 * 1024;
/** Bytes of a tar in one message, which with its frame fills a buffer of 256 KiB. */
export const copyChunkBytes = 256 * 1024 - 64;
/** Input messages waiting to be sent on one exec. When it is full, stdin stops taking bytes. */
export const execInputQueue = 64;
/**
 * How long `waitReady` waits from the start of a sandbox for the end of its init plan, ms; then it fails with timed-out. The limits of the
 * plan's steps, of the dial and of the registration are shorter in sum.
 */
export const planWaitMs = 15 * 60_000;
/**
 * How long a call tries to connect if nothing has listened since its first try, ms: `up` restarts a control plane within that time.
 * Then it fails with control-plane-unreachable.
 */
export const connectWaitMs = 5_000;
/**
 * How long a call whose connection broke is repeated with the same idempotency key (L-20), ms. A supervisor restarts the control plane
 * after at most half of that. Then it fails with control-plane-unreachable, and reports that the result is unknown.
 */
export const callWaitMs = 30_000;
/** How long an attached process, a watch or a wait waits for the control plane, ms. Then it fails with control-plane-unreachable. */
export const streamWaitMs = 300_000;
/** How long an attached process waits for its host, ms: a host may reboot. Then it fails with host-unavailable. */
export const hostWaitMs = 15 * 60_000;
/** First and longest delay between two tries, ms; full jitter. */
export const retryBaseMs = 100;
export const retryCapMs = 3_000;
/** How long fetching the server's CA certificate may take, ms. */
export const caFetchTimeoutMs = 10_000;
/** Interval of pings on a connection with open streams, and the time without a response after which it counts as broken, ms. */
export const pingIntervalMs = 15_000;
export const pingTimeoutMs = 10_000;
