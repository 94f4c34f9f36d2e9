export { runCli } from './run-cli.ts';
export { messageJson } from './output/output.ts';
