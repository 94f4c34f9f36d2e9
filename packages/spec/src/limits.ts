// Limits that two processes must agree on, and those of the inputs that this package parses.

/** Thousandths of a CPU that a sandbox or a host may name. More is refused. */
export const maxCpuMillis = 1_000_000;
/** Labels of one sandbox or host. More is refused. */
export const maxLabels = 64;
