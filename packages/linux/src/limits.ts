/** Limits of calls to the kernel and of the programs that are started. docs/limits.md lists them. */

/** Bytes of one extended attribute (Linux: XATTR_SIZE_MAX), and of the list of a file's attribute names (XATTR_LIST_MAX). */
export const maxAttributeBytes = 65_536;
/** The interval between two checks of all children, in case SIGCHLD was not delivered. Milliseconds. */
export const childCheckMs = 10_000;
/** How long a program may take to end after SIGKILL; then its caller stops waiting, since the program hangs in the kernel. Milliseconds. */
export const killedProgramMs = 1_000;
/** Bytes that a program may print on each of its output streams, unless its caller says otherwise; then it is killed. */
export const programOutputBytes = 64 * 1024;
/** How long mount(8) and umount(8) may take, which may wait for a busy disk; then they are killed and the operation fails. Milliseconds. */
export const mountProgramMs = 120_000;
/** How long replacing the root of a container may take, which touches the file systems of volumes; then the operation fails. Milliseconds. */
export const rootReplacementMs = 30_000;
/** Containers that may wait for another root; one more is refused with queue-full. */
export const rootReplacementsQueued = 512;
/** How long a cgroup may take to empty after its processes were killed; then it is left to the next sweep. Milliseconds. */
export const cgroupRemovalMs = 10_000;
