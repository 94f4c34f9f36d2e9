/** Limits of the protocol package. docs/limits.md lists them. */

/** Characters of an error's message, and of its hint, that one process sends to another. Longer ones are cut. */
export const maxErrorLength = 4_096;
/** Bytes of one message of a host's stream. A larger one ends the stream. */
export const maxHostStreamMessageBytes = 1024 * 1024;
/** Bytes of data in one frame of a tunnel; more are split into several frames. The receiver buffers one frame. */
export const maxTunnelFrameBytes = 64 * 1024;
