/** Every limit of the supervisor. Listed in docs/limits.md. The times are spec 4's (S-6). */
export const limits = {
  /** Milliseconds before the first restart; doubled with each up to the cap. A run longer than the cap resets it. */
  backoffBaseMs: 1000,
  backoffCapMs: 60_000,
  /** Unexpected exits in a sliding window before the circuit opens: the sixth in a minute opens it. */
  restartsInWindow: 5,
  windowMs: 60_000,
  /** Milliseconds that an open circuit stays open. The process is then started again, with a clean record. */
  coolDownMs: 60_000,
  /** Milliseconds between health probes; the first follows the start immediately. */
  probeEveryMs: 5000,
  /** Milliseconds for one probe to respond. A later response counts as a failure. */
  probeTimeoutMs: 5000,
  /** Milliseconds between the probes of a process that is not ready yet: doubled from the first up to the second. */
  eagerProbeMs: 50,
  maxEagerProbeMs: 200,
  /** Failed probes in a row that make a running process unhealthy. */
  probeFailures: 3,
  /** Milliseconds from its start in which a process is not restarted for being unhealthy. */
  startGraceMs: 30_000,
  /** Milliseconds from the stop signal to SIGKILL. */
  stopGraceMs: 5000,
  /** Bytes of one line of a process's output in the log; the rest of a longer line is dropped. */
  lineBytes: 4096,
  /** Lines of one process that are logged in a second; further lines are counted and dropped. */
  linesPerSecond: 500,
  /** Milliseconds that the output of a process stays open after its exit, while another process holds the pipe. */
  outputDrainMs: 500,
  /** Processes of one supervisor; one more is refused with no-room. */
  processes: 256,
  /** Listening sockets that one process can be passed; a larger LISTEN_FDS is refused with invalid-config. */
  sockets: 64,
  /** Connections that wait in a listening socket while its daemon restarts (G-9). The kernel cuts it to net.core.somaxconn. */
  backlog: 4096,
  /** Milliseconds between checks whether a process that is no child of this one has ended. */
  exitPollMs: 20,
  /** Milliseconds between searches for orphans that no signal announced. */
  reapIntervalMs: 10_000,
} as const;
