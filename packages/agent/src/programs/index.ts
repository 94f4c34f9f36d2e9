export { launch, type Launched } from './launch.ts';
export { runProgram, type Finished } from './run.ts';
