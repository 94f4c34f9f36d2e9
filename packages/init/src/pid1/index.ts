/** drover-init as PID 1. */
export { main } from './main.ts';
