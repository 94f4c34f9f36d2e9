export { makeDisk, mountDisk, unmountDisk, type Disk } from './disk.ts';
export { isMounted, mountPoints, mountProgram } from './mounted.ts';
