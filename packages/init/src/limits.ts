/** Every bound of drover-init: what the workload or a peer can make it hold, wait for or write. */

/** Open connections to the session port, all from the host; one more is closed immediately. */
export const maxConnections = 64;
/** From a connection to the session port to the end of its TLS handshake; then it is closed. Milliseconds. */
export const handshakeTimeoutMs = 10_000;
/**
 * Calls of each kind at the same time; one more is refused with no-room. All kinds together stay below the streams of a connection, so that no
 * kind keeps another waiting: a client would wait for a free stream without a word.
 */
export const maxForwardCalls = 128;
export const maxExecCalls = 192;
export const maxCopyCalls = 32;
export const maxLogCalls = 64;
export const maxListCalls = 32;
/** Streams on one connection; further ones wait at the client (HTTP/2, SETTINGS_MAX_CONCURRENT_STREAMS). */
export const maxConcurrentCalls = 512;
/** Milliseconds that a client may go on sending after it has had the whole answer; then its stream is closed. */
export const lingerMs = 2_000;
/** Bytes of data in one message that init sends. */
export const maxChunkBytes = 64 * 1024;

/** Bytes of output kept per process for those who attach again (I-40); the oldest go first and are counted. */
export const maxReplayBytes = 1024 * 1024;
/** Bytes of output kept over all processes; beyond it, each keeps an even share. */
export const maxReplayBytesTotal = 16 * 1024 * 1024;
/** What each process may keep however many there are: more than an attached reader may lag behind. */
export const minReplayBytes = 192 * 1024;
/** Bytes that the slowest attached reader may lag behind before the process's output is no longer read (I-39). */
export const maxReaderLagBytes = 64 * 1024;
/** Milliseconds for a process with a terminal to become its program; a slower process counts as started. */
export const execMs = 10_000;
/** Bytes of the message by which it says that it could not. */
export const maxExecFailureBytes = 256;
/** The wait before input is written again to a terminal that took none: doubled from the first up to the second. Milliseconds. */
export const terminalRetryMs = 1;
export const maxTerminalRetryMs = 50;
/** Exec processes running at once; one more is refused with no-room. */
export const maxRunningExecs = 64;
/** Milliseconds from SIGHUP to SIGKILL for an exec that is ended because it has no client. */
export const lingerGraceMs = 10_000;
/** Ended execs kept for who asks for their status; the oldest go first. */
export const maxEndedExecs = 32;
/** Milliseconds that an ended exec is kept. */
export const endedExecTtlMs = 10 * 60_000;
/** Milliseconds that a process's exit waits for the end of its output when something else holds the pipe open. */
export const outputDrainMs = 500;
/** The same, when what holds it open goes on writing: what comes later is read and dropped. Milliseconds in which nobody was waited for. */
export const maxOutputDrainMs = 3_000;
/** And so many bytes at most, however slowly they are taken: two full pipes (pipe(7), pipe-max-size) and what streams hold. */
export const maxOutputDrainBytes = 2 * 1024 * 1024 + 256 * 1024;
/** Characters of a command, all arguments together, in the list of execs. */
export const maxListedCommandLength = 2_000;

/** Requests of one session that are being answered at once; one more is refused with no-room. */
export const maxSessionRequests = 32;
/** Steps of the init plan running at once; one more is refused with no-room. */
export const maxRunningSteps = 8;
/** Steps that run once a start and have ended, whose end is kept (I-32); one more is refused with no-room. */
export const maxOnceSteps = 16;
/** Characters of git's own words in the error of a step that ran it. */
export const maxComplaintLength = 1000;
/** Characters of a step's name. */
export const maxStepNameLength = 64;
/** The timeout of a step that names none, and the longest that one may name. Milliseconds. */
export const maxStepMs = 60 * 60_000;

/** Milliseconds for a registration with the control plane, all tries together (I-13). */
export const registerMs = 25_000;
/** A connection for it that was made ahead, and does not stand or is not asked for by then, ends. Milliseconds. */
export const earlyConnectionMs = 5_000;
/** Milliseconds for one try of it. */
export const registerTryMs = 10_000;
/** The wait between two tries: full jitter up to the first, doubled up to the second. Milliseconds. */
export const registerBackoffMs = 100;
export const maxRegisterBackoffMs = 2_000;

/** Bytes of one record of the kept log; longer output is split. */
export const maxLogRecordBytes = 16 * 1024;
/** Bytes of one file of the kept log that a reader takes, from its end: the files are the workload's too, which could make them larger. */
export const maxLogFileReadBytes = 32 * 1024 * 1024;
/** Bytes waiting for the disk before the main process's output is no longer read. */
export const maxLogPendingBytes = 1024 * 1024;
/** Milliseconds that the end of the main process waits for the log to reach the disk. */
export const logFlushMs = 2_000;

/** Files that were left out of a copy and are named in its answer; the others are only counted. */
export const maxLeftOutNamed = 1_000;
/** Milliseconds to connect to a port in the sandbox. */
export const forwardConnectMs = 10_000;

/** Milliseconds between the last SIGKILL and exit, for exits to be reaped and told. */
export const killWaitMs = 2_000;
/** Milliseconds that attached streams get, at exit, to carry their last bytes. */
export const closeGraceMs = 500;
/** How long after the kernel's count of out-of-memory kills was seen to rise a kill is attributed to a process that ends. Milliseconds. */
export const oomClaimMs = 1_000;
/** oom_score_adj of what the user runs: the kernel takes it before init. */
export const workloadOomScoreAdj = 500;
/** Tries to set it of one process, and the wait after the first, doubled with each; then it keeps init's. Milliseconds. */
export const oomScoreTries = 8;
export const oomScoreRetryMs = 5;
/** The rehearsal of a standby. Milliseconds; one that takes longer is given up, and init is no standby then. */
export const rehearsalMs = 10_000;
/** Milliseconds without a call before init gives memory back, and the least time between two such efforts. */
export const idleTrimMs = 1_500;
export const trimIntervalMs = 30_000;
/** A sandbox that may be idle is looked at five times in its idle time, but not more and not less often than this. Milliseconds. */
export const minIdleCheckMs = 500;
export const maxIdleCheckMs = 10_000;
/** CPU time between two looks that still counts as idle: this share of one CPU, or so many milliseconds where that is more. */
export const idleCpuShare = 0.02;
export const idleCpuFloorMs = 50;
/** Groups of one user beside its own; those that follow in /etc/group are left out. Linux takes 65,536, one argument 128 KiB. */
export const maxGroups = 1024;
/** Bytes of /etc/passwd or /etc/group; a longer one counts as absent. */
export const maxAccountBytes = 4 * 1024 * 1024;
