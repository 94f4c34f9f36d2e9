export type { EventDraft, StoredEvent } from './event.ts';
export { watchEvents, type WatchedEvent, type WatchOptions } from './watch.ts';
