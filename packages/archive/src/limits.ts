/** Limits of reading and writing tar streams. docs/limits.md lists them. */

/** Bytes of one extended tar header (long names, PAX records). Above: unsafe-archive. */
export const maxTarHeaderBytes = 1024 ** 2;
/** Segments of one sparse file. Above: unsafe-archive when read; a file with more is copied without its holes. */
export const maxSparseSegments = 1_000_000;
/** Entries of one copied tree. Above: too-large. */
export const maxCopyEntries = 1_000_000;
/** Bytes of one copied tree. Above: too-large. */
export const maxCopyBytes = 64 * 1024 ** 3;
/** Bytes that a walk collects before it passes them on, and of one read of a large file: in a message, they fill a buffer of 256 KiB. */
export const treeChunkBytes = 256 * 1024 - 64;
/** Bytes of a file up to which it is read whole before its size is written, so that it may change meanwhile. */
export const wholeFileBytes = 1024 ** 2;
/** Bytes of a file that reports no size, such as a file of /proc. Above: it is left out and named. */
export const maxUnsizedBytes = 16 * 1024 ** 2;
