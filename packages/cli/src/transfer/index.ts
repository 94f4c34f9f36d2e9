export { copyIn } from './copy-in.ts';
export { copyOut } from './copy-out.ts';
export type { CopyFlags } from './flags.ts';
export { CopyReport } from './report.ts';
