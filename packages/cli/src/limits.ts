/** Limits of the CLI. docs/limits.md lists them. */

/** Environment files and context files larger than this are refused, bytes. */
export const maxConfigFileBytes = 1024 * 1024;
/** Contexts of one person; `drover context add` and `up` refuse to make more. */
export const maxContexts = 100;
/** How long completion waits for names from the control plane, ms. Then it completes without them. */
export const completionTimeoutMs = 1_500;
/** A start that takes longer than this shows what it is doing, ms. */
export const progressAfterMs = 700;
/** How often a waiting `run` looks at the sandbox's state for its progress, ms. */
export const progressIntervalMs = 500;
/** Characters of a failed step's stderr in the sentence that `run` ends with, the last ones; `sandbox get` shows all that is kept. */
export const maxStderrShown = 500;
/** How often the line with that is redrawn on a terminal, ms. */
export const statusFrameMs = 100;
/** How long an interrupted `run` or `sandbox create` waits for the answer to its create, to remove what it made, and then for the removal, ms. */
export const interruptGraceMs = 10_000;
/** How long an interrupted `exec` waits for the end of the process that it has just asked for and killed, ms. */
export const interruptKillMs = 2_000;
/** How long `run` waits, after its command was killed or asked to end, for the host to report why, ms. */
export const endReportWaitMs = 2_000;
/** How long `run --rm` waits for the host to tell of the end, and then for the removal, ms. Then it leaves that to the control plane. */
export const removalWaitMs = 5_000;
/** TCP keepalive of connections that `forward` accepts: so a client that vanished is noticed, ms without traffic. */
export const forwardKeepaliveMs = 30_000;
/** This many interrupts within a second let go of a process that does not end. */
export const impatientInterrupts = 3;
/** Files that a copy left out and names; the others are only counted. */
export const maxLeftOutShown = 1_000;
/** A copy redraws its progress on a terminal this often, and says it in a pipe this often, ms. */
export const copyRedrawMs = 200;
export const copyLineMs = 10_000;
/** How long `up` waits for the control plane to answer, and then for the host to be ready, ms. */
export const upControlPlaneMs = 30_000;
export const upHostMs = 60_000;
/** How long `up` waits for its two processes to end after SIGTERM before it kills them, ms. */
export const upStopMs = 15_000;
/** How long doctor waits for one check, ms. It is then a warning. */
export const doctorCheckMs = 5_000;
/** Free bytes in the data directory below which doctor warns. */
export const doctorFreeBytes = 2 * 1024 ** 3;
/** Bytes of `up`'s log file; then it becomes drover.log.1, and the one before is gone. */
export const upLogBytes = 32 * 1024 * 1024;
/** How often a process started by `up` looks whether `up` is still there, ms. Without it, it ends. */
export const parentCheckMs = 500;
/** How long a second `up` waits for the processes of one that was killed to leave the port, ms. */
export const upTakeOverMs = 20_000;
/** A command that waits for the control plane says so after this long, ms; tries this far apart belong to different waits. */
export const waitNoteAfterMs = 1_000;
export const waitNoteGapMs = 10_000;
/** A connection that is still broken is mentioned this often, ms. */
export const reconnectNoteMs = 30_000;

/** The shortest --host-ttl (three heartbeats of a second) and --lost-grace, and the longest of both, ms. Others are refused. */
export const minHostTtlMs = 3_000;
export const minLostGraceMs = 1_000;
export const maxLivenessMs = 24 * 3_600_000;
/** The shortest and the longest --reconnect-max, ms. Others are refused. */
export const minReconnectMaxMs = 500;
export const maxReconnectMaxMs = 600_000;

/** Between the first two looks of `top`, which give its first shares of CPU, and between the following ones, ms. */
export const topFirstMs = 1_000;
export const topIntervalMs = 2_000;
