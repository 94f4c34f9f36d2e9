/** Every limit of drover-init: it bounds what the workload or a peer can make init hold, wait for or write. */

/** Open connections to the session port, all from the host; one more is closed immediately. */
export const maxConnections = 64;
/** From a connection to the session port to the end of its TLS handshake; a slower connection is closed. Milliseconds. */
export const handshakeTimeoutMs = 10_000;
/**
 * Concurrent calls of each kind; one more is refused with no-room. All kinds together stay below the streams of a connection, so that no
 * kind delays another: a client would wait for a free stream without notice.
 */
export const maxForwardCalls = 128;
export const maxExecCalls = 192;
export const maxCopyCalls = 32;
export const maxLogCalls = 64;
export const maxListCalls = 32;
/** Streams on one connection; further ones wait at the client (HTTP/2, SETTINGS_MAX_CONCURRENT_STREAMS). */
export const maxConcurrentCalls = 512;
/** Milliseconds that a client may go on sending after the whole response; then its stream is closed. */
export const lingerMs = 2_000;
/** Bytes of data in one message that init sends. */
export const maxChunkBytes = 64 * 1024;

/** Bytes of output kept per process for clients that reattach (I-40); the oldest are dropped first, and counted. */
export const maxReplayBytes = 1024 * 1024;
/** Bytes of output kept over all processes; beyond it, each keeps an even share of it. */
export const maxReplayBytesTotal = 16 * 1024 * 1024;
/** Bytes that each process keeps whatever the number of processes: more than an attached reader may lag behind. */
export const minReplayBytes = 192 * 1024;
/** Bytes that the slowest attached reader may lag behind before the process's output is no longer read (I-39). */
export const maxReaderLagBytes = 64 * 1024;
/** Milliseconds for a process with a terminal to become its program; a slower process counts as started. */
export const execMs = 10_000;
/** Bytes of the message by which a process reports that it could not. */
export const maxExecFailureBytes = 256;
/** The wait before input is written again to a terminal that took none: doubled from the first up to the second. Milliseconds. */
export const terminalRetryMs = 1;
export const maxTerminalRetryMs = 50;
/** Running exec processes; one more is refused with no-room. */
export const maxRunningExecs = 64;
/** Milliseconds from SIGHUP to SIGKILL for an exec that is ended because it has no client. */
export const lingerGraceMs = 10_000;
/** Ended execs whose status is kept; the oldest are dropped first. */
export const maxEndedExecs = 32;
/** Milliseconds that an ended exec is kept. */
export const endedExecTtlMs = 10 * 60_000;
/** Milliseconds that the exit of a process waits for the end of its output while another process holds the pipe open. */
export const outputDrainMs = 500;
/** The same, while that process goes on writing; later output is read and dropped. Milliseconds, without those in which a reader is waited for. */
export const maxOutputDrainMs = 3_000;
/** Bytes of that output, however slowly they are read: two full pipes (pipe(7), pipe-max-size) and the buffers of the streams. */
export const maxOutputDrainBytes = 2 * 1024 * 1024 + 256 * 1024;
/** Characters of a command, all arguments together, in the list of execs. */
export const maxListedCommandLength = 2_000;

/** Concurrent requests of one session; one more is refused with no-room. */
export const maxSessionRequests = 32;
/** Running steps of the init plan; one more is refused with no-room. */
export const maxRunningSteps = 8;
/** Steps of one start that run only once, whose end is kept (I-32); one more is refused with no-room. */
export const maxOnceSteps = 16;
/** Characters of git's message in the error of a step. */
export const maxComplaintLength = 1000;
/** Characters of a step's name. */
export const maxStepNameLength = 64;
/** The default timeout of a step, and the longest. Milliseconds. */
export const maxStepMs = 60 * 60_000;

/** Milliseconds for a registration with the control plane, all tries together (I-13). */
export const registerMs = 25_000;
/** A connection that is opened for it in advance ends unless it is used by then. Milliseconds. */
export const earlyConnectionMs = 5_000;
/** Milliseconds for one try of a registration. */
export const registerTryMs = 10_000;
/** The wait between two tries: full jitter up to the first, doubled up to the second. Milliseconds. */
export const registerBackoffMs = 100;
export const maxRegisterBackoffMs = 2_000;

/** Bytes of one record of the kept log; longer output is split. */
export const maxLogRecordBytes = 16 * 1024;
/** Bytes at the end of one file of the kept log that a reader takes: the workload could make the files larger. */
export const maxLogFileReadBytes = 32 * 1024 * 1024;
/** Bytes waiting for the disk before the main process's output is no longer read. */
export const maxLogPendingBytes = 1024 * 1024;
/** Milliseconds that the end of the main process waits for the log to reach the disk. */
export const logFlushMs = 2_000;

/** Files that a copy left out and names in its response; further ones are only counted. */
export const maxLeftOutNamed = 1_000;
/** Milliseconds to connect to a port in the sandbox. */
export const forwardConnectMs = 10_000;

/** Milliseconds between the last SIGKILL and the exit of init, in which exits are reaped and reported. */
export const killWaitMs = 2_000;
/** Milliseconds at exit in which open streams carry their last bytes. */
export const closeGraceMs = 500;
/** How long after a rise of the kernel's count of out-of-memory kills a kill is attributed to a process that ends. Milliseconds. */
export const oomClaimMs = 1_000;
/** oom_score_adj of the user's processes: the kernel kills them before init. */
export const workloadOomScoreAdj = 500;
/** Tries to set it for one process, and the wait after the first in milliseconds, doubled with each; then the process keeps init's. */
export const oomScoreTries = 8;
export const oomScoreRetryMs = 5;
/** The time limit of a standby's warm-up run. Milliseconds; a slower run is abandoned, and its init is no standby. */
export const warmUpMs = 10_000;
/** Milliseconds without a call before init returns unused memory, and the shortest time between two such efforts. */
export const idleTrimMs = 1_500;
export const trimIntervalMs = 30_000;
/** The shortest and the longest time between two checks for idleness; five checks fit into the idle time of a sandbox. Milliseconds. */
export const minIdleCheckMs = 500;
export const maxIdleCheckMs = 10_000;
/** CPU time between two checks that still counts as idle: this share of one CPU, or this many milliseconds if that is more. */
export const idleCpuShare = 0.02;
export const idleCpuFloorMs = 50;
/** Supplementary groups of one user; further ones in /etc/group are ignored. Linux takes 65,536 groups, and 128 KiB per argument. */
export const maxGroups = 1024;
/** Bytes of /etc/passwd or /etc/group; a longer file counts as absent. */
export const maxAccountBytes = 4 * 1024 * 1024;
