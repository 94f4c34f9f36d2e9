export { eventKinds, type EventDraft, type StoredEvent } from './event.ts';
export { subscribe, type Subscription } from './subscribe.ts';
export { watchEvents, type WatchedEvent, type WatchOptions } from './watch.ts';
