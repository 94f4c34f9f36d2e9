export { Volumes } from './volumes.ts';
