/** Every limit of the supervisor. Listed in docs/limits.md. The times are spec 4's (S-6). */
export const limits = {
  /** Milliseconds before the first restart; doubled with each up to the cap. A run longer than the cap starts over. */
  backoffBaseMs: 1000,
  backoffCapMs: 60_000,
  /** Restarts in a sliding window before the circuit opens: the sixth in a minute opens it. */
  restartsInWindow: 5,
  windowMs: 60_000,
  /** Milliseconds that an open circuit stays open; then the process is tried again, with a clean record. */
  coolDownMs: 60_000,
  /** Milliseconds between readiness probes; the first is made at once. */
  probeEveryMs: 5000,
  /** Milliseconds for one probe to answer; then it has failed. */
  probeTimeoutMs: 5000,
  /** Failed probes in a row that make a running process unhealthy. */
  probeFailures: 3,
  /** Milliseconds from SIGTERM to SIGKILL. */
  stopGraceMs: 5000,
  /** Bytes of one line of a process's output in the log; the rest of a longer line is cut off. */
  lineBytes: 4096,
  /** Lines of one process that are logged in a second; more are counted and left out. */
  linesPerSecond: 500,
  /** Milliseconds that output may go on after its process has ended (somebody else holds the pipe); then it is closed. */
  outputDrainMs: 500,
  /** Processes of one supervisor; one more is refused with no-room. */
  processes: 256,
} as const;
