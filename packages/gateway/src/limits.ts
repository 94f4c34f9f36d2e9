/** Every limit of the gateway. Listed in docs/limits.md. */
export const limits = {
  /** Sandboxes in one table; a larger table is refused with too-large. */
  sandboxes: 16_384,
  /** Bytes of one control message (a whole table). Larger: the call fails with resource-exhausted. */
  controlMessageBytes: 64 * 1024 * 1024,
  /** Calls of the control API on one connection. Further ones wait for the client's HTTP/2. */
  controlCalls: 64,
  /** How long a client of the control API may send after its response, ms; then its stream is closed. */
  controlLingerMs: 2_000,
  /** Client connections of one sandbox; one more is closed immediately. */
  connectionsPerSandbox: 512,
  /** Connections of an address that is not in the table; one more is closed immediately. */
  connectionsPerUnknownAddress: 8,
  /** Client connections in total; one more is closed immediately. */
  connections: 16_384,
  /** Bytes of the head of a request or a response. More: 431 to the client, or 502 for a response. */
  headBytes: 32 * 1024,
  /** Header lines of a request's head; more: 431. */
  headerLines: 128,
  /** Milliseconds for a client to send its head; then 408. */
  headTimeoutMs: 10_000,
  /** Milliseconds that a client's connection may wait between requests; then it is closed. */
  keepAliveMs: 15_000,
  /** Milliseconds for a name to be resolved; then 504. */
  resolveTimeoutMs: 5000,
  /** Concurrent lookups of one sandbox, abandoned ones that have not ended included; one more: 503. */
  lookupsPerSandbox: 8,
  /** Milliseconds for one address to accept a connection; then the attempt has failed. */
  dialTimeoutMs: 10_000,
  /** Milliseconds before the next address is tried concurrently. Source: RFC 8305, section 8. */
  attemptDelayMs: 250,
  /** Addresses of one name that are tried; further ones are ignored. */
  dialAddresses: 16,
  /** Milliseconds without a byte in either direction; then the connection is closed. It bounds long polls and idle tunnels. */
  idleMs: 60 * 60_000,
  /** Milliseconds that one direction of a tunnel may go on without a byte after the other has ended. */
  halfOpenIdleMs: 5 * 60_000,
  /** Milliseconds that the host's own addresses are cached. */
  ownAddressesMs: 2000,
  /** Characters of the reason phrase of a refusal; longer ones are cut. */
  reasonPhraseLength: 256,
  /** Refused destinations of one sandbox that are reported as events within `refusalQuietMs`; further ones are in the log only. */
  refusalsReportedPerSandbox: 32,
  /** Milliseconds in which repeated refusals of one destination are counted into one report. */
  refusalQuietMs: 60_000,
  /** Reports that wait for an agent; beyond it the oldest are dropped. */
  refusalsWaiting: 1024,
  /** Refusals of one sandbox that are logged in a second; the rest is counted in the next line. */
  refusalsLoggedPerSecond: 10,
  /** Milliseconds from SIGTERM to SIGKILL for a daemon (G-6). */
  daemonStopGraceMs: 8000,
  /**
   * Threads of the egress daemon. libuv resolves names in half of them, and a name whose server is silent holds one for some 10 s: with
   * `lookupsPerSandbox` of each, it takes 8 hostile sandboxes to keep the others of the host waiting.
   */
  egressThreads: 128,
  /** Milliseconds in which the connection of a refused client ends. */
  stopGraceMs: 1000,
} as const;
