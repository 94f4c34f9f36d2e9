/** Limits of the CLI. docs/limits.md lists them. */

/** Environment files and context files larger than this are refused, bytes. */
export const maxConfigFileBytes = 1024 * 1024;
/** Contexts of one user; `drover context add` and `up` refuse to create more. */
export const maxContexts = 100;
/** How long completion waits for names from the control plane, ms. After that it completes without them. */
export const completionTimeoutMs = 1_500;
/** A start that takes longer than this shows its progress, ms. */
export const progressAfterMs = 700;
/** How often a waiting `run` reads the sandbox's state for its progress, ms. */
export const progressIntervalMs = 500;
/** Characters from the end of a failed step's stderr in the error of `run`; `sandbox get` shows all that is retained. */
export const maxStderrShown = 500;
/** How often the progress line is redrawn on a terminal, ms. */
export const statusFrameMs = 100;
/** How long an interrupted `run` or `sandbox create` waits for the response to its create, and then for the removal, ms. */
export const interruptGraceMs = 10_000;
/** How long an interrupted `exec` waits for the end of the process that it has just started and killed, ms. */
export const interruptKillMs = 2_000;
/** How long `run` waits for the host to report why its command was killed or stopped, ms. */
export const endReportWaitMs = 2_000;
/** How long `run --rm` waits for the host to report the end, and then for the removal, ms. After that the control plane removes the sandbox. */
export const removalWaitMs = 5_000;
/** TCP keepalive of connections that `forward` accepts, ms without traffic. It detects clients that vanished. */
export const forwardKeepaliveMs = 30_000;
/** This many interrupts within a second detach from a process that does not end. */
export const impatientInterrupts = 3;
/** Files left out of a copy that are named; the others are only counted. */
export const maxLeftOutShown = 1_000;
/** How often a copy redraws its progress on a terminal, and prints it in a pipe, ms. */
export const copyRedrawMs = 200;
export const copyLineMs = 10_000;
/** How long `up` waits for the control plane to respond, and then for the host to be ready, ms. */
export const upControlPlaneMs = 30_000;
export const upHostMs = 60_000;
/** How long `up` waits for its processes to exit after SIGTERM before it kills them, ms. */
export const upStopMs = 15_000;
/** How long doctor waits for one check, ms. After that the check is a warning. */
export const doctorCheckMs = 5_000;
/** Free bytes in the data directory below which doctor warns. */
export const doctorFreeBytes = 2 * 1024 ** 3;
/** Bytes of `up`'s log file. A full log is renamed to drover.log.1, which replaces the previous one. */
export const upLogBytes = 32 * 1024 * 1024;
/** How long `up` waits for the processes of a killed `up` to release the port, ms. */
export const upTakeOverMs = 20_000;
/** A command that waits for the control plane notes it after this long, ms. Retries further apart than the gap belong to different waits. */
export const waitNoteAfterMs = 1_000;
export const waitNoteGapMs = 10_000;
/** How often a broken connection is noted, ms. */
export const reconnectNoteMs = 30_000;

/** The shortest --host-ttl (three heartbeats of a second) and --lost-grace, and the longest of both, ms. */
export const minHostTtlMs = 3_000;
export const minLostGraceMs = 1_000;
export const maxLivenessMs = 24 * 3_600_000;
/** The shortest and the longest --reconnect-max, ms. */
export const minReconnectMaxMs = 500;
export const maxReconnectMaxMs = 600_000;

/** The time between the first two samples of `top`, and between later ones, ms. */
export const topFirstMs = 1_000;
export const topIntervalMs = 2_000;
