/** The warm-up run of a standby. */
export { warmUp } from './warm-up.ts';
