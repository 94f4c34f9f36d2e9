/** The calls of InitService. */
export { exec, listExecs, signalExec } from './exec.ts';
export { session } from './session.ts';
