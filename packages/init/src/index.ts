/** For the agent: the files that init reads and writes, and its program. Nothing here loads init itself. */
export { buildInitBundle, initBundlePath, initNodeFlags, ptyAddonPath } from './bundle.ts';
export * from './config.ts';
export { packPath } from './files/index.ts';
export { readLog, type LogEntry } from './logs/index.ts';
