export { launch } from './launch.ts';
export type { Launched } from './launcher.ts';
export { runProgram, type Finished } from './run.ts';
