/** Copies into and out of the sandbox. */
export { copyIn } from './copy-in.ts';
export { copyOut, packPath } from './copy-out.ts';
