export { subscribe, type Subscription } from './subscribe.ts';
export { SubjectWakes } from './wake-ups.ts';
export { watchEvents, type WatchedEvent, type WatchOptions } from './watch.ts';
