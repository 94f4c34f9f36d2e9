/** The init plan: its steps, by name. */
export { Steps } from './steps.ts';
