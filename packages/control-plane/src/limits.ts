// Host link (spec 1): packages/control-plane/src/hub

/** How often a host sends a heartbeat (L-9). Milliseconds. */
export const heartbeatIntervalMs = 10_000;
/** A host silent for this long is marked down and its stream closed (L-10). Milliseconds. */
export const hostTtlMs = 30_000;
/** The hub's loop writes heartbeats and checks for silent hosts this often. Milliseconds. */
export const hubTickMs = 1_000;
/** Heartbeats in one store transaction; more go into the next one. */
export const heartbeatBatch = 1_000;
/** How often the hub looks for streams that are superseded or whose hosts are removed (L-4, L-11). Milliseconds. */
export const linkAuditMs = 10_000;
/** A stream that has not sent its first frame by then is ended with DEADLINE_EXCEEDED. Milliseconds. */
export const firstFrameMs = 10_000;
/** Frames waiting on one stream for a slow host; one more is refused with queue-full (L-17). */
export const linkQueueFrames = 256;
/** Bytes waiting on one stream for a slow host; beyond them, queue-full (L-17). */
export const linkQueueBytes = 8 * 1024 * 1024;
/** Sandboxes of one host whose observations wait for the store; beyond them the stream is paused until the store has caught up. */
export const pendingObservations = 4_096;
/** Events of one host that wait for the store; beyond them the oldest are dropped and logged. */
export const pendingHostEvents = 4_096;
/** Characters of the name of a signal that a host reports. */
export const maxSignalNameLength = 32;
/** Characters of a process's name in an event; the kernel's has at most 15. */
export const maxProcessNameLength = 64;
/** Characters of the host, the method and the rule of a refused request in an event; a DNS name has at most 253. */
export const maxEgressTextLength = 300;
/**
 * Events of one sandbox (refused connections, out-of-memory kills, full disks) that are stored per hour; further ones are dropped. A sandbox
 * that tries a new destination every second would otherwise displace the events of all others from `retainedEvents` within days.
 */
export const hostEventsPerSandboxHour = 240;
/** Accept ramp (L-12): registrations per second, and the burst after a quiet time; further hosts receive GoAway BUSY with a later time. */
export const registrationsPerSecond = 400;
export const registrationBurst = 400;
/** Registrations in one transaction on SQLite; more go into the next one. */
export const registrationBatch = 64;
/** The interval between two such transactions, unless one is full; registrations wait for the next one. Milliseconds. */
export const registrationGatherMs = 20;
/** The longest delay that the ramp assigns to a host. Milliseconds; beyond it hosts share the last slot, spread by their own jitter. */
export const rampMaxDelayMs = 30_000;
/** Concurrent TLS handshakes; further connections wait unread (L-12). */
export const concurrentHandshakes = 64;
/** A connection that has not made a call by then releases its slot to the next one, and may continue. Milliseconds. */
export const handshakeSlotMs = 2_000;
/** Connections waiting for a handshake; one more is closed immediately, and the host backs off. */
export const waitingConnections = 16_384;
/** A connection that has not made a call by then is closed. Milliseconds. */
export const handshakeMs = 15_000;
/** How long a host may take to read GoAway before its connection is destroyed. Milliseconds. */
export const goAwayGraceMs = 2_000;
/** Streams on one connection: the link and its tunnels. */
export const streamsPerConnection = 2_048;
/** How long a host may take to open a tunnel after the command (L-30); then the call fails with timed-out. Milliseconds. */
export const tunnelOpenMs = 20_000;
/** Tunnels being opened on the whole replica; one more is refused with queue-full. */
export const openingTunnels = 4_096;
/** API: bytes of one message of a request. A longer one fails the call with resource-exhausted. */
export const maxRequestBytes = 4 * 1024 * 1024;
/** API: streams that one connection may have open. Further ones wait at the client (HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS). */
export const maxStreamsPerConnection = 1_000;
/** API: HTTP/2 windows of a stream and of a connection, bytes. They bound the data in flight to a slow reader. */
export const apiStreamWindowBytes = 1024 * 1024;
export const apiConnectionWindowBytes = 4 * 1024 * 1024;
/** API: how long the TLS handshake of a connection may take; then the connection is closed. Milliseconds. */
export const apiHandshakeTimeoutMs = 10_000;
/** API: a connection without a call for this long is closed. Milliseconds. */
export const apiIdleMs = 60_000;
/** API: how long a request may take to arrive completely; then it is reset. Requests that are streams are exempt. Milliseconds. */
export const apiRequestMs = 30_000;
/** API: interval of HTTP/2 pings on a connection with a call, and the time to respond; then the connection is closed. Milliseconds. */
export const apiPingMs = 30_000;
export const apiPingTimeoutMs = 15_000;
/** API: how long init may take to respond to a call that is no stream; then it fails with timed-out. Milliseconds. */
export const initCallMs = 10_000;
/** API: how long an exec runs without a client and without output, unless its start sets another time. Seconds. */
export const defaultLingerSeconds = 3_600;
/** API: concurrent connections. Further ones are closed immediately. */
export const apiMaxConnections = 10_000;
/** API: how long calls may continue after the server began to stop, ms. Then they are cut. */
export const apiShutdownGraceMs = 2_000;
/** API: how long the first message of a stream may take, ms. Then the call fails with invalid-argument. */
export const firstMessageTimeoutMs = 10_000;
/** API: bytes of a chunk that the API sends. Longer data is split. */
export const apiChunkBytes = 64 * 1024;
/** API: characters of an idempotency key. */
export const maxIdempotencyKeyLength = 128;
/** API: default and largest number of rows of a page. A larger number is reduced to the largest. */
export const defaultPageSize = 500;
export const maxPageSize = 1_000;
/** API: how long a call waits for the host to contain or release a sandbox; then it returns with the containment pending. Milliseconds. */
export const containWaitMs = 10_000;
/** API: hosts or sandboxes that one error names; it reports the number of the others. */
export const maxNamedHosts = 8;
/** API: characters of the reason of a containment. A longer one is refused. */
export const maxContainReasonLength = 500;
/** API: sandboxes of one page of a worldview's snapshot. */
export const worldviewPage = 500;
/** The CPU and memory that placement reserves for a sandbox that requests none. */
export const defaultRequestCpuMillis = 100;
export const defaultRequestMemoryBytes = 64 * 1024 * 1024;
/** API: how long an exec or a log tries to reattach after a break of its sandbox's session, ms. Then it fails with the session's error. */
export const reattachMs = 60_000;
/** API: how long init may take to begin an exec or to attach to one on an open session; then the call fails with timed-out. Milliseconds. */
export const initAnswerMs = 30_000;
/**
 * API: how long a copy or a read of a log may stall: without a message from init (or from the host, if the sandbox does not run), and without
 * init accepting one; then it fails with timed-out. Milliseconds.
 */
export const initSilenceMs = 60_000;
/** API: first and longest delay between two attempts to reattach, ms; full jitter. */
export const reattachBaseMs = 50;
export const reattachCapMs = 2_000;
/**
 * API: how long a call waits for the reconnect of a host that has just disconnected, ms. A restart of an agent or a control plane takes less.
 * A call to a host that has been disconnected for longer fails immediately with host-unavailable (L-15).
 */
export const hostReturnMs = 5_000;
/** API: how long the host may take to report the exit code of a main process, ms. Then the exec fails. */
export const exitReportMs = 10_000;
/** API: sandboxes that one call for stats may name; without names it covers up to `listPageMax`. */
export const maxStatsReferences = 1_000;
/** API: hosts that one call for images or stats queries concurrently; further ones follow. */
export const imageFanOut = 64;
/** API: how long a host may take to list, remove or prune images or to diagnose itself, ms. Then it counts as failed. */
export const hostCallTimeoutMs = 60_000;
/** API: default lifetime of a join token. Seconds. */
export const defaultJoinTtlSeconds = 3_600;

// Store: packages/control-plane/src/{store,database}

/** Prepared SQL statements in the cache; one more clears it. */
export const preparedStatements = 500;
/** How long SQLite waits for another process's transaction; then the call fails. Milliseconds. */
export const sqliteBusyMs = 5_000;
/** Connections to PostgreSQL of one replica; further calls wait for a free one. */
export const postgresConnections = 16;
/** How long a call waits for a connection to PostgreSQL; then it fails. Milliseconds. */
export const postgresConnectMs = 10_000;
/** First and longest delay between attempts to listen again for other replicas' events. Milliseconds. */
export const listenBackoffBaseMs = 200;
export const listenBackoffCapMs = 10_000;
/** Attempts of a transaction that PostgreSQL aborts because of a conflict; then the call fails. */
export const transactionAttempts = 5;
/** Transactions that share one commit of SQLite. */
export const transactionsPerCommit = 64;
/** Transactions that wait for SQLite; one more is refused. */
export const waitingTransactions = 50_000;
/** Rows in one INSERT or one batch; more go into the next. Both databases bound the parameters of a statement. */
export const rowsPerStatement = 500;
/** Rows of a list if its caller sets no limit. */
export const listPage = 500;
/** Rows of the largest list; more are left for the next page. */
export const listPageMax = 10_000;

// Placement, reconcile and the event feed: packages/control-plane/src/{placement,reconcile,feed}

/** Attempts to place one sandbox when concurrent placements fill its hosts; then it waits for the next round. */
export const placementAttempts = 10;
/** Characters of the reason why no host can take a sandbox; the rest is cut off. */
export const maxPendingMessageLength = 2_000;
/** Sandboxes of one placement round; more are left for the next one. */
export const placementBatch = 256;
/** Placement runs at least this often, and pauses at least this long after each round. Milliseconds. */
export const placementIntervalMs = 5_000;
export const placementPauseMs = 100;
/** Concurrent commands of the reconciler on one host; further sandboxes wait. */
export const stepsPerHost = 64;
/** First and longest ceiling of the delay between attempts of one sandbox's step, drawn with full jitter. Milliseconds. */
export const stepBackoffBaseMs = 500;
export const stepBackoffCapMs = 60_000;
/** Attempts of a create or start that fails with a transient error; then the sandbox fails with the last one. */
export const startAttempts = 6;
/** The loop of a host reconciles all of its sandboxes this often. Milliseconds. */
export const resyncMs = 60_000;
/** A host down for this long makes its sandboxes lost (L-26). Milliseconds. */
export const lostGraceMs = 60_000;
/** Any replica marks a host down after this silence, since the host's own replica may be down. Milliseconds; three times `hostTtlMs`. */
export const orphanedHostMs = 90_000;
/** How often lost, expired and old rows are handled. Milliseconds. */
export const upkeepMs = 5_000;
/** How long a sandbox with --rm is retained after its end, so that clients can read the rest of its output. Milliseconds. */
export const removeOnExitMs = 5_000;
/** Retained events; a watcher that needs older ones receives the number of lost events (I-36). */
export const retainedEvents = 100_000;
/** Events in one read of a watcher. */
export const eventPage = 256;
/** A watcher reads new events this often even without a wake-up. Milliseconds. */
export const watchIntervalMs = 5_000;
/** How long the response to an idempotency key is retained (L-20), and their number; a call repeated later is a new call. Milliseconds. */
export const idempotencyRetentionMs = 24 * 60 * 60 * 1_000;
export const retainedIdempotencyKeys = 50_000;
/** How long a deleted sandbox is listed and found by its id, and the number of them; its events are retained like other events. Milliseconds. */
export const deletedRetentionMs = 7 * 24 * 60 * 60 * 1_000;
export const retainedDeleted = 10_000;
/** Batches of `rowsPerStatement` old rows that one round of upkeep drops. */
export const trimBatches = 20;
/** How long an expired join or sandbox token is retained; later it is refused as unknown. Milliseconds. */
export const expiredTokenRetentionMs = 24 * 60 * 60 * 1_000;
/** How often a drain checks the remaining sandboxes. Milliseconds. */
export const drainPollMs = 500;
/** How often certificates are checked for renewal. Milliseconds. */
export const certificateCheckMs = 3_600_000;

// Sessions: packages/control-plane/src/sessions

/** First and longest ceiling of the delay between attempts of one dial, drawn with full jitter (I-23). Milliseconds. */
export const dialBackoffBaseMs = 500;
export const dialBackoffCapMs = 10_000;
/**
 * The total time of a dial (I-23), which restarts when the host reports that the sandbox runs; then SessionFailed, and the start has failed if
 * its command cannot have begun. Milliseconds.
 */
export const dialTotalMs = 60_000;
/** Consecutive servers that end unexpectedly before they have settled; after this many, sandboxes are dialled on trial. */
export const crashesBeforeTrials = 2;
/** A server that has run for this long has settled: its unexpected end starts the count of crashes again. Milliseconds. */
export const crashSettledMs = 600_000;
/** How long a trial lasts before the next sandboxes are dialled; doubled with each further crash, up to the cap. Milliseconds. */
export const crashTrialMs = 1_000;
export const crashTrialCapMs = 60_000;
/** Sandboxes in one trial. A crash makes all of them suspects, which are then dialled one at a time. */
export const crashTrialGroupMax = 256;
/** For this many lengths of a trial after a start, every sandbox is dialled on trial; later sandboxes only while others wait. */
export const crashTrialsMax = 10;
/** Delay after a start before a suspect of one crash is dialled; doubled with each further crash, up to the cap. Milliseconds. */
export const crashDelayBaseMs = 30_000;
export const crashDelayCapMs = 600_000;
/** A lost session, whose dial failed, is redialled about this often while its sandbox runs: after 0.5 to 1.5 times this delay. Milliseconds. */
export const lostRedialMs = 60_000;
/** Concurrent redials of lost sessions on one replica; further ones wait for the same delay again. */
export const concurrentLostRedials = 32;
/** How long one attempt may take, from the tunnel to HelloAck; then it fails. Milliseconds. */
export const dialAttemptMs = 20_000;
/** How long the sockets of a connection may take to close; then the close fails. Milliseconds. */
export const connectionCloseMs = 5_000;
/** Consecutive failures to close a sandbox's connection that end its dial with `fd-leak-ceiling` (I-25). */
export const closeFailuresMax = 5;
/** Consecutive sessions that break within the init plan of one start; then the plan fails with transport-error. */
export const interruptedPlansMax = 5;
/** How long init may take to respond to RegisterRequired (I-27); then the registry alone decides. Milliseconds. */
export const registerRequiredMs = 30_000;
/** How long a step of the init plan, and post-init, may take (I-29); then init kills it. Milliseconds. */
export const stepMs = 30_000;
export const postInitStepMs = 600_000;
/** How long a request may wait for its response beyond its own timeout; then it fails with timeout. Milliseconds. */
export const responseSlackMs = 10_000;
/** The retained end of a step's stderr (I-30). Bytes. */
export const stderrTailBytes = 4_096;
/** Characters of an error that init reports; the rest is cut off. */
export const maxInitErrorLength = 1_000;
/** How long a host may take to report the end of a sandbox after its init has; then its session is redialled. Milliseconds. */
export const endReportMs = 10_000;
/** Unknown payloads of one session that are logged. */
export const driftsLogged = 10;
/** Frames waiting to be sent on one session, and requests waiting for their responses; one more fails its request. */
export const sessionQueueFrames = 64;
/** Delay before a failed renewal of a sandbox's certificate is retried. Milliseconds. */
export const sandboxRenewalRetryMs = 60_000;
/** A session without a frame for the first of these sends a ping, and breaks without a response within the second. Milliseconds. */
export const sessionPingMs = 15_000;
export const sessionPingTimeoutMs = 10_000;
/**
 * The rate at which one sandbox's session may send to the control plane: bytes, and messages over all of its calls, per second, and the bursts
 * after a quiet time. Beyond it the connection is read more slowly, and backpressure stops the sender. The output of an exec reaches the limit
 * of bytes first.
 */
export const sessionBytesPerSecond = 64 * 1024 * 1024;
export const sessionBurstBytes = 64 * 1024 * 1024;
export const sessionMessagesPerSecond = 2_000;
export const sessionBurstMessages = 2_000;
/** Sessions that one round of upkeep compares with the registry (I-11). */
export const sessionsCompared = 1_000;
/** How long the other calls of a session may continue after the end of the main process. Milliseconds. */
export const closeGraceMs = 2_000;

// Journal and event feed: packages/control-plane/src/{journal,feed}

/** Events and checks that wait for the store; one more drops the oldest, and the log reports their number. */
export const journalQueue = 10_000;
/** Events and checks in one transaction; more go into the next one. */
export const journalBatch = 1_000;
/** First and longest ceiling of the delay between attempts to write a batch, drawn with full jitter. Milliseconds. */
export const journalBackoffBaseMs = 100;
export const journalBackoffCapMs = 5_000;
/** Attempts to write one batch, more than a minute in total; then it is dropped, and the log reports the number of lost events and checks. */
export const journalAttempts = 40;
/** Characters of a message, a name or a piece of evidence in a view; the rest is cut off. */
export const viewTextLength = 1_000;
/** First and longest ceiling of the delay between a subscriber's attempts to read events, drawn with full jitter. Milliseconds. */
export const subscribeBackoffBaseMs = 200;
export const subscribeBackoffCapMs = 10_000;

// Identity: packages/control-plane/src/{identity,store}

/** Certificates of one sandbox that may still register; one more drops the oldest with its token. */
export const certificatesPerSandbox = 8;
/** Access tokens of one registration; one more, after a lost response, drops the oldest. */
export const accessTokensPerSandbox = 4;
/** Lifetime of the token of a reinstated sandbox. Milliseconds; twice the tolerated clock skew (I-17). */
export const secondTokenMs = 10 * 60_000;
/** How long Register waits for the host to report the address of its caller; then the call is refused (I-14). Milliseconds. */
export const addressWaitMs = 3_000;
/** Registrations that wait for an address, in total and through one host; one more is decided by the present record. */
export const addressWaits = 1_024;
export const addressWaitsPerHost = 128;
/** The record is read again this often, even without an event of its sandbox. Milliseconds. */
export const addressPollMs = 250;
/** How often the times at which sandboxes were last seen are written (I-10). Milliseconds. */
export const seenFlushMs = 5_000;
/** Sandboxes whose last-seen time waits to be written; further ones are skipped until their next call or frame. */
export const pendingSeen = 65_536;
/** Attempts to list the registry's orphans at the start; then the server continues without a reap (I-12). */
export const reapAttempts = 3;
/** First and longest ceiling of the delay between these attempts; full jitter. Milliseconds. */
export const reapBackoffBaseMs = 200;
export const reapBackoffCapMs = 2_000;

// Sandbox-facing listener: packages/control-plane/src/sandbox-facing

/** Concurrent connections of sandboxes; one more is closed immediately. */
export const sandboxConnections = 4_096;
/** Concurrent connections of one sandbox; one more is closed immediately. */
export const connectionsPerSandbox = 8;
/** How long the TLS handshake of a sandbox's connection may take; then the connection is cut. Milliseconds. */
export const sandboxHandshakeMs = 10_000;
/** A connection of a sandbox without a call for this long is cut. Milliseconds. */
export const sandboxIdleMs = 60_000;
/** How long a call of a sandbox may take; then it is cut with its connection. Milliseconds; longer than any wait of Register. */
export const sandboxRequestMs = 30_000;
/** Bytes of one request of a sandbox; a longer one fails with resource-exhausted. And of its headers; longer ones end the connection. */
export const sandboxRequestBytes = 16 * 1024;
export const sandboxHeaderBytes = 16 * 1024;
/** Concurrent calls on one connection of a sandbox; further ones wait at the client. */
export const sandboxStreamsPerConnection = 16;
/** A refusal is sent at a multiple of this time after the start of its call, regardless of the duration of the check (I-16). Milliseconds. */
export const refusalMs = 100;
/** The earliest time of a refusal of Register, since some of these wait for the address first. Milliseconds. */
export const registerRefusalMs = addressWaitMs + 200;
/** Sandboxes whose last refusal is retained; one more drops the oldest. */
export const retainedRefusals = 10_000;
/** How long calls of sandboxes may continue after the control plane began to stop. Milliseconds. */
export const sandboxShutdownMs = 2_000;

/** Characters of a host's report that a sandbox has reached a limit; the rest is cut off. */
export const maxLimitTextLength = 500;
