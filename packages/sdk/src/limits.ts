/** Limits of the SDK. docs/limits.md lists them. */

/** The largest message that the client reads, bytes. A larger one fails the call with too-large. */
export const maxMessageBytes = 8 * 1024 * 1024;
/** Bytes of stdin or of a forwarded connection in one message. Longer ones are cut up. */
export const chunkBytes = 64 * 1024;
/** The same of a tar: fewer messages are faster, and with its frame such a message fills a buffer of 256 KiB. */
export const copyChunkBytes = 256 * 1024 - 64;
/** Input messages waiting to be sent on one exec. When it is full, stdin stops taking bytes. */
export const execInputQueue = 64;
/**
 * How long `waitReady` waits from the start of a sandbox for the end of its init plan, ms. The plan's steps, the dial and the
 * registration have limits of their own, which come to less. Then it fails with timed-out.
 */
export const planWaitMs = 15 * 60_000;
/**
 * How long a call tries to connect where nothing has listened from its first try on, ms: `up` restarts a control plane within that.
 * Then it fails with control-plane-unreachable.
 */
export const connectWaitMs = 5_000;
/**
 * How long a call whose connection broke waits for the control plane, ms, repeated with the same idempotency key (L-20). A supervisor
 * restarts it after at most half of that. Then it fails with control-plane-unreachable, and says that the result is unknown.
 */
export const callWaitMs = 30_000;
/** How long an attached process, a watch or a wait waits for the control plane, ms. Then it fails with control-plane-unreachable. */
export const streamWaitMs = 300_000;
/** How long an attached process waits for its host to be back, ms: a host may reboot. Then it fails with host-unavailable. */
export const hostWaitMs = 15 * 60_000;
/** First and longest delay between two tries, ms; full jitter. */
export const retryBaseMs = 100;
export const retryCapMs = 3_000;
/** How long fetching the server's CA certificate may take, ms. */
export const caFetchTimeoutMs = 10_000;
/** A connection with open streams is probed this often, ms, and counts as broken when no answer comes in the second time. */
export const pingIntervalMs = 15_000;
export const pingTimeoutMs = 10_000;
