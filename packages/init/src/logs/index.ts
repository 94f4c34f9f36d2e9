/** The kept log of the main process. */
export { readLog, type LogEntry } from './reader.ts';
export { LogWriter } from './writer.ts';
