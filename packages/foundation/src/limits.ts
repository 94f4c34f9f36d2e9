/** Bytes of a configuration file; a longer one is refused with invalid-config. */
export const maxConfigBytes = 1024 * 1024;
/** Bytes of log lines that wait for a slow reader of a server's stderr; further lines are dropped and counted. */
export const logOutputBytes = 256 * 1024;
/** Milliseconds between two attempts to write them. */
export const logOutputRetryMs = 100;
