export { checkDisk, fullnessOf, hostDiskFull } from './full.ts';
export { isDiskRoot, isMounted, mountPoints, mountProgram } from './mounted.ts';
export { makeDisk, mountDisk, unmountDisk, type Disk } from './disk.ts';
