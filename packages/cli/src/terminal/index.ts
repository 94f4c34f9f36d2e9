export { DetachKeys } from './detach.ts';
export { lineEnd, RawTerminal } from './raw.ts';
export { StatusLine } from './status-line.ts';
