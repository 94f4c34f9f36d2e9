export { commandPath, locate } from './command-line.ts';
export { messageJson } from './output/index.ts';
export { buildProgram } from './program.ts';
export { runCli } from './run-cli.ts';
