export { checkDisk, fullnessOf, hostDiskFull } from './full.ts';
export { isDiskRoot, makeDisk, mountDisk, unmountDisk, type Disk } from './disk.ts';
