export { applyEvent, emptyView, isRepeated, recordChecks, viewSubject } from './apply.ts';
export type * from './worldview.ts';
