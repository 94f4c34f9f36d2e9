/** A sandbox's setup (I-29): what its init plan does before its command starts. */
export { parseSetup, type ReportMistake, type Setup, type SetupFile, type SetupInput, type SetupSource } from './setup.ts';
export type { GitClone } from './git.ts';
