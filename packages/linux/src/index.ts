/**
 * The only package that calls the kernel: functions of the C library, /proc, cgroups, mounts and namespaces. What starts a thread has an entry of
 * its own, so that init's bundle does not contain it: @drover/linux/root-replacement.
 */

// Files: calls that Node has no API for, by byte strings.
export {
  attributesOf,
  changeRootDirectory,
  makeNode,
  nextData,
  nextHole,
  setAttribute,
  setTime,
  syncFileSystem,
  type NodeType,
} from './files.ts';

// Processes: /proc, children, and this process itself.
export * from './proc.ts';
export { childExit, collectExits, isAwaited, reapChild, type ChildExit } from './children.ts';
export { closeOnExec, makePipe, signalProcess, trimMemory, withFileOwner, type Pipe } from './process-calls.ts';

// Sockets that listen without a server.
export { listenAtPath, listenOn } from './sockets.ts';

// Programs of the system.
export { launch, type Launched, type LaunchOptions } from './launch.ts';
export { runProgram, type Finished, type RunOptions } from './run-program.ts';
export { searchPath } from './search-path.ts';
export { killedProgramMs } from './limits.ts';

// Mounts and namespaces.
export { isMounted, mountPoints, mountProgram, Mounts, type MountOption, type OverlayOptions } from './mounts.ts';
export { makeUserNamespace } from './user-namespaces.ts';

// Cgroups.
export { Cgroups, ownOomKills, type CgroupLimits, type CgroupUsage } from './cgroups.ts';
