export { VolumeStore, type HostVolume } from './volumes.ts';
