export { defineDockerCommands } from './define.ts';
export { dockerHint } from './hints.ts';
