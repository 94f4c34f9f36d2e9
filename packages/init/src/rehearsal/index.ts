/** The warm-up run of a standby. */
export { rehearse } from './rehearsal.ts';
