// Host link (spec 1): packages/control-plane/src/hub

/** How often a host sends a heartbeat (L-9). Milliseconds. */
export const heartbeatIntervalMs = 10_000;
/** A host silent for this long is marked down and its stream closed (L-10). Milliseconds. */
export const hostTtlMs = 30_000;
/** The hub's one loop writes heartbeats and checks for silent hosts this often. Milliseconds. */
export const hubTickMs = 1_000;
/** Heartbeats in one store transaction; more go into the next one. */
export const heartbeatBatch = 1_000;
/** How often the hub compares its streams with the store's hosts (removed, or newer elsewhere: L-4, L-11). Milliseconds. */
export const linkAuditMs = 10_000;
/** A stream that has not sent its first frame by then is ended with DEADLINE_EXCEEDED. Milliseconds. */
export const firstFrameMs = 10_000;
/** Frames waiting on one stream for a slow host; one more is refused with queue-full (L-17). */
export const linkQueueFrames = 256;
/** Bytes waiting on one stream for a slow host; beyond them, queue-full (L-17). */
export const linkQueueBytes = 8 * 1024 * 1024;
/** Sandboxes of one host whose observations wait for the store; beyond them the stream is not read until it caught up. */
export const pendingObservations = 4_096;
/** Events of one host that wait for the store; beyond it the oldest are dropped and logged. */
export const pendingHostEvents = 4_096;
/** Characters of the name of a signal that a host reports. */
export const maxSignalNameLength = 32;
/** Characters of a process's name in an event; the kernel's has at most 15. */
export const maxProcessNameLength = 64;
/** Characters of the host, the method and the rule of a refused request in an event; a DNS name has at most 253. */
export const maxEgressTextLength = 300;
/**
 * Events of one sandbox that are stored in an hour of those that its host reports (refused connections, out-of-memory kills, full disks). One
 * that tries a new destination every second would otherwise push the events of all others out of `retainedEvents` within days.
 */
export const hostEventsPerSandboxHour = 240;
/** Accept ramp (L-12): registrations a second, and the burst after a quiet time; the others get GoAway BUSY with the time of their slot. */
export const registrationsPerSecond = 400;
export const registrationBurst = 400;
/** Registrations in one transaction on SQLite; more go into the next one. */
export const registrationBatch = 64;
/** Between the beginnings of two such transactions, unless one is full; a registration waits for the next. Milliseconds. */
export const registrationGatherMs = 20;
/** The longest delay that the ramp gives a host. Milliseconds; beyond it hosts share the last slot, spread by their own jitter. */
export const rampMaxDelayMs = 30_000;
/** Connections whose TLS handshake is under way; the others wait unread (L-12). */
export const concurrentHandshakes = 64;
/** A connection that has not made a call by then releases its slot to the next one, and may continue. Milliseconds. */
export const handshakeSlotMs = 2_000;
/** Connections waiting for a handshake; one more is closed at once, and the host backs off. */
export const waitingConnections = 16_384;
/** A connection that has not made a call by then is closed. Milliseconds. */
export const handshakeMs = 15_000;
/** How long a host may take to read GoAway before its connection is destroyed. Milliseconds. */
export const goAwayGraceMs = 2_000;
/** Streams on one connection: the link and its tunnels. */
export const streamsPerConnection = 2_048;
/** From the command to the host's tunnel (L-30); then timed-out. Milliseconds. */
export const tunnelOpenMs = 20_000;
/** Tunnels being opened on the whole replica; one more is refused with queue-full. */
export const openingTunnels = 4_096;
/** API: bytes of one message of a request. A longer one fails the call with resource-exhausted. */
export const maxRequestBytes = 4 * 1024 * 1024;
/** API: streams that one connection may have open. Further ones wait at the client (HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS). */
export const maxStreamsPerConnection = 1_000;
/** API: HTTP/2 window of a stream and of a connection, bytes. A reader that is slower stops the writer there. */
export const apiStreamWindowBytes = 1024 * 1024;
export const apiConnectionWindowBytes = 4 * 1024 * 1024;
/** API: from a connection to the end of its TLS handshake; then it is closed. Milliseconds. */
export const apiHandshakeTimeoutMs = 10_000;
/** API: a connection on which no call is under way for this long is closed. Milliseconds. */
export const apiIdleMs = 60_000;
/** API: a request that has not arrived whole by then is reset; those of streams, whose caller goes on sending, are not. Milliseconds. */
export const apiRequestMs = 30_000;
/** API: HTTP/2 pings on a connection with a call, and how long the client may then send nothing; it has vanished if it does. Milliseconds. */
export const apiPingMs = 30_000;
export const apiPingTimeoutMs = 15_000;
/** API: how long init may take to respond to a call that is no stream; then it fails with timed-out. Milliseconds. */
export const initCallMs = 10_000;
/** API: how long an exec runs without a client and without output where its start says nothing else. Seconds. */
export const defaultLingerSeconds = 3_600;
/** API: connections at once. Further ones are closed at once. */
export const apiMaxConnections = 10_000;
/** API: how long calls may go on after the server began to stop, ms. Then they are cut. */
export const apiShutdownGraceMs = 2_000;
/** API: how long the first message of a stream may take, ms. Then the call fails with invalid-argument. */
export const firstMessageTimeoutMs = 10_000;
/** API: bytes of a chunk that the API sends. Longer data is cut up. */
export const apiChunkBytes = 64 * 1024;
/** API: characters of an idempotency key. */
export const maxIdempotencyKeyLength = 128;
/** API: rows of a page when the caller names no number, and at most. More is cut to the most. */
export const defaultPageSize = 500;
export const maxPageSize = 1_000;
/** API: how long the host may take to contain a sandbox or to release it, before the answer says that it has not yet. Milliseconds. */
export const containWaitMs = 10_000;
/** API: hosts, or sandboxes, that one error names; the others are counted. */
export const maxNamedHosts = 8;
/** API: characters of the reason that is given for a containment. A longer one is refused. */
export const maxContainReasonLength = 500;
/** API: sandboxes of one page of a worldview's snapshot. */
export const worldviewPage = 500;
/** What placement counts for a sandbox that names no CPU or no memory. */
export const defaultRequestCpuMillis = 100;
export const defaultRequestMemoryBytes = 64 * 1024 * 1024;
/** API: how long an exec or a log looks for its sandbox's session again after a break, ms. Then it fails with the session's error. */
export const reattachMs = 60_000;
/** API: how long init may take to begin an exec, or to attach to one, without a break; then the call fails with timed-out. Milliseconds. */
export const initAnswerMs = 30_000;
/**
 * API: how long a copy, or the reading of a log, may go on without a message from init (of a sandbox that does not run: from its host), or
 * without init taking one; then it fails with timed-out. Milliseconds.
 */
export const initSilenceMs = 60_000;
/** API: first and longest delay between two tries to attach again, ms; full jitter. */
export const reattachBaseMs = 50;
export const reattachCapMs = 2_000;
/**
 * API: how long a call waits for a host that has just disconnected, ms: an agent or a control plane that is restarted needs less. A call
 * to a host that is down for longer fails immediately with host-unavailable (L-15).
 */
export const hostReturnMs = 5_000;
/** API: how long an ended main process's exit code may take to be reported by the host, ms. Then the exec fails. */
export const exitReportMs = 10_000;
/** API: sandboxes that one call for stats may name; without names, it answers for `listPageMax`. */
export const maxStatsReferences = 1_000;
/** API: hosts that one call for images or stats asks at the same moment; the others follow. */
export const imageFanOut = 64;
/** API: how long a host may take to list, remove or prune images or to diagnose itself, ms. Then it counts as failed. */
export const hostCallTimeoutMs = 60_000;
/** API: lifetime of a join token for which none is named. Seconds. */
export const defaultJoinTtlSeconds = 3_600;

// Store: packages/control-plane/src/{store,database}

/** SQL statements kept prepared; when there are more, all are prepared again as they are used. */
export const preparedStatements = 500;
/** How long SQLite waits for another process's transaction; then the call fails. Milliseconds. */
export const sqliteBusyMs = 5_000;
/** Connections to PostgreSQL of one replica; more calls wait for one. */
export const postgresConnections = 16;
/** From asking for a connection to PostgreSQL until having it; then the call fails. Milliseconds. */
export const postgresConnectMs = 10_000;
/** Between tries to listen for other replicas' events again: first and longest. Milliseconds. */
export const listenBackoffBaseMs = 200;
export const listenBackoffCapMs = 10_000;
/** Runs of a transaction that PostgreSQL gave up for another's sake; then the call fails. */
export const transactionAttempts = 5;
/** Transactions that share one commit of SQLite, at most. */
export const transactionsPerCommit = 64;
/** Rows in one INSERT or one batch; more go into the next. Both databases bound the parameters of a statement. */
export const rowsPerStatement = 500;
/** Rows of a list when its caller gives no limit. */
export const listPage = 500;
/** Rows of the largest list; more are left for the next page. */
export const listPageMax = 10_000;

// Placement, reconcile and the event feed: packages/control-plane/src/{placement,reconcile,feed}

/** Hosts tried for one sandbox whose room was taken meanwhile; then it waits for the next round. */
export const placementAttempts = 10;
/** Characters of the reason why no host can take a sandbox; the rest is cut off. */
export const maxPendingMessageLength = 2_000;
/** Sandboxes of one placement round; more are left for the next one. */
export const placementBatch = 256;
/** Placement runs at least this often, and pauses at least this long after each round. Milliseconds. */
export const placementIntervalMs = 5_000;
export const placementPauseMs = 100;
/** Commands of the reconciler under way on one host; more sandboxes wait for one to end. */
export const stepsPerHost = 64;
/** Between tries of one sandbox's step: first ceiling and longest; drawn with full jitter. Milliseconds. */
export const stepBackoffBaseMs = 500;
export const stepBackoffCapMs = 60_000;
/** Tries of a creation or start that fail for reasons that may pass; then the sandbox fails with the last one. */
export const startAttempts = 6;
/** A host's loop plans for all of its sandboxes this often. Milliseconds. */
export const resyncMs = 60_000;
/** A host down for this long makes its sandboxes lost (L-26). Milliseconds. */
export const lostGraceMs = 60_000;
/** Any replica marks a host down that was silent for this long, as the host's own replica may be down. Milliseconds; three times `hostTtlMs`. */
export const orphanedHostMs = 90_000;
/** How often lost, expired and old rows are handled. Milliseconds. */
export const upkeepMs = 5_000;
/** How long a sandbox with --rm stays after its end, so that the rest of its output can be read. Milliseconds. */
export const removeOnExitMs = 5_000;
/** Retained events; a watcher that needs older ones learns how many it lost (I-36). */
export const retainedEvents = 100_000;
/** Events that a watcher reads at once. */
export const eventPage = 256;
/** A watcher reads new events this often even without a wake-up. Milliseconds. */
export const watchIntervalMs = 5_000;
/** How long the response to an idempotency key is retained (L-20), and how many are; a call repeated later is a new call. Milliseconds. */
export const idempotencyRetentionMs = 24 * 60 * 60 * 1_000;
export const retainedIdempotencyKeys = 50_000;
/** How long a deleted sandbox is listed and found by its id, and how many are; its events stay as long as other events. Milliseconds. */
export const deletedRetentionMs = 7 * 24 * 60 * 60 * 1_000;
export const retainedDeleted = 10_000;
/** Batches of `rowsPerStatement` old rows that one round of upkeep drops. */
export const trimBatches = 20;
/** How long an expired join or sandbox token is retained; later it is refused as unknown. Milliseconds. */
export const expiredTokenRetentionMs = 24 * 60 * 60 * 1_000;
/** How often a drain checks the remaining sandboxes. Milliseconds. */
export const drainPollMs = 500;
/** How often certificates are checked for their renewal. Milliseconds. */
export const certificateCheckMs = 3_600_000;

// Sessions: packages/control-plane/src/sessions

/** Between tries of one dial: first ceiling and longest; drawn with full jitter (I-23). Milliseconds. */
export const dialBackoffBaseMs = 500;
export const dialBackoffCapMs = 10_000;
/**
 * How long a dial is tried in all (I-23), anew from when the host says that the sandbox runs; then SessionFailed, and the start has failed
 * if its command cannot have begun. Milliseconds.
 */
export const dialTotalMs = 60_000;
/** Servers in a row that end unexpectedly before they have settled; after so many, sandboxes are dialled on trial. */
export const crashesBeforeTrials = 2;
/** A server that has run for this long has settled: its unexpected end begins a new count of crashes. Milliseconds. */
export const crashSettledMs = 600_000;
/** How long sandboxes are on trial before others are dialled; doubled with each further crash, up to the cap. Milliseconds. */
export const crashTrialMs = 1_000;
export const crashTrialCapMs = 60_000;
/** Sandboxes that are on trial together: a crash makes all of them suspects, which are then dialled one at a time. */
export const crashTrialGroupMax = 256;
/** For so many times the length of a trial after a start, every sandbox is dialled on trial; later ones only while others wait. */
export const crashTrialsMax = 10;
/** How long after a start a sandbox is dialled that has ended one server; doubled with each further one, up to the cap. Milliseconds. */
export const crashDelayBaseMs = 30_000;
export const crashDelayCapMs = 600_000;
/** A lost session, whose dial was given up, is redialled about this often while its sandbox runs: half to one and a half times. Milliseconds. */
export const lostRedialMs = 60_000;
/** Such redials under way on one replica; further ones are tried again after the same time. */
export const concurrentLostRedials = 32;
/** One attempt, from the tunnel to HelloAck; a longer one has failed. Milliseconds. */
export const dialAttemptMs = 20_000;
/** How long the sockets of a connection may take to close; then the closing has failed. Milliseconds. */
export const connectionCloseMs = 5_000;
/** Failures in a row to close a sandbox's connection that end its dial with `fd-leak-ceiling` (I-25). */
export const closeFailuresMax = 5;
/** Sessions in a row that broke within the init plan of one start; then the plan has failed, with transport-error. */
export const interruptedPlansMax = 5;
/** From RegisterRequired to its answer (I-27); then the registry says what became of it. Milliseconds. */
export const registerRequiredMs = 30_000;
/** A step of the init plan, and post-init (I-29); init kills it then. Milliseconds. */
export const stepMs = 30_000;
export const postInitStepMs = 600_000;
/** How much longer than its own time a request may wait for its response; then it has failed with timeout. Milliseconds. */
export const responseSlackMs = 10_000;
/** The retained end of a step's stderr (I-30). Bytes. */
export const stderrTailBytes = 4_096;
/** Characters of an error that init reports; the rest is cut off. */
export const maxInitErrorLength = 1_000;
/** How long a host may take to report the end of a sandbox after its init did; then its session is redialled. Milliseconds. */
export const endReportMs = 10_000;
/** Unknown payloads of one session that are logged. */
export const driftsLogged = 10;
/** Frames waiting to be sent on one session, and requests waiting for their answers; one more fails its request. */
export const sessionQueueFrames = 64;
/** A certificate that could not be renewed on its session is tried again after this. Milliseconds. */
export const sandboxRenewalRetryMs = 60_000;
/** A session without a frame for the first of these sends a ping, and is broken without a response within the second. Milliseconds. */
export const sessionPingMs = 15_000;
export const sessionPingTimeoutMs = 10_000;
/**
 * What one sandbox's session may bring to the control plane: bytes, and messages over all of its calls, a second; and the bursts after
 * a quiet time. Beyond that its connection is read more slowly, which stops the sender. An exec whose output is read reaches the bytes first.
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

/** Events and checks that wait for the store; one more drops the oldest, and the log counts the lost ones. */
export const journalQueue = 10_000;
/** Events and checks in one transaction; more go into the next one. */
export const journalBatch = 1_000;
/** Between tries to write a batch: first ceiling and longest; drawn with full jitter. Milliseconds. */
export const journalBackoffBaseMs = 100;
export const journalBackoffCapMs = 5_000;
/** Tries to write one batch, over a minute in all; then it is dropped, and the log counts the lost ones. */
export const journalAttempts = 40;
/** Characters of a message, a name or a piece of evidence in a view; the rest is cut off. */
export const viewTextLength = 1_000;
/** Between tries of a subscriber to read events: first ceiling and longest; drawn with full jitter. Milliseconds. */
export const subscribeBackoffBaseMs = 200;
export const subscribeBackoffCapMs = 10_000;

// Identity: packages/control-plane/src/{identity,store}

/** Certificates of one sandbox that may still register: more signings, and the oldest is forgotten with its token. */
export const certificatesPerSandbox = 8;
/** Access tokens of one registration; one more, after a lost answer, and the oldest is dropped. */
export const accessTokensPerSandbox = 4;
/** How long the token of a sandbox that was reinstated may be used. Milliseconds; twice the clock skew that breaks nothing (I-17). */
export const secondTokenMs = 10 * 60_000;
/** How long Register waits until the host reports the address of its caller; then it is refused (I-14). Milliseconds. */
export const addressWaitMs = 3_000;
/** Registrations that wait for an address, in all and through one host; one more is decided by the present record. */
export const addressWaits = 1_024;
export const addressWaitsPerHost = 128;
/** The record is read again this often even when no event of its sandbox came. Milliseconds. */
export const addressPollMs = 250;
/** Last seen is written this often (I-10). Milliseconds. */
export const seenFlushMs = 5_000;
/** Sandboxes whose last seen waits to be written; further ones are skipped until their next call or frame. */
export const pendingSeen = 65_536;
/** Tries to list the registry's orphans at the start; then the server continues without a reap (I-12). */
export const reapAttempts = 3;
/** Between them: first ceiling and longest; full jitter. Milliseconds. */
export const reapBackoffBaseMs = 200;
export const reapBackoffCapMs = 2_000;

// Sandbox-facing listener: packages/control-plane/src/sandbox-facing

/** Connections of sandboxes at once; one more is closed at once. */
export const sandboxConnections = 4_096;
/** Connections of one sandbox at once; one more is closed at once. */
export const connectionsPerSandbox = 8;
/** A connection of a sandbox whose TLS handshake has not ended by then is cut. Milliseconds. */
export const sandboxHandshakeMs = 10_000;
/** A connection of a sandbox on which no call is under way for this long is cut. Milliseconds. */
export const sandboxIdleMs = 60_000;
/** A call of a sandbox that has not ended by then is cut with its connection. Milliseconds; longer than Register may wait for anything. */
export const sandboxRequestMs = 30_000;
/** Bytes of one request of a sandbox; a longer one fails with resource-exhausted. And of its headers; longer ones end the connection. */
export const sandboxRequestBytes = 16 * 1024;
export const sandboxHeaderBytes = 16 * 1024;
/** Calls on one connection of a sandbox at once; further ones wait at the client. */
export const sandboxStreamsPerConnection = 16;
/** A refusal is sent at a multiple of this after its call came, whatever the check took (I-16). Milliseconds. */
export const refusalMs = 100;
/** And one of Register not sooner than this: some of them wait for the address first. Milliseconds. */
export const registerRefusalMs = addressWaitMs + 200;
/** Sandboxes whose last refusal is retained; one more drops the oldest. */
export const retainedRefusals = 10_000;
/** How long calls of sandboxes may continue after the control plane began to stop. Milliseconds. */
export const sandboxShutdownMs = 2_000;

/** Characters of what a host reports of a limit that a sandbox has reached; the rest is cut off. */
export const maxLimitTextLength = 500;
