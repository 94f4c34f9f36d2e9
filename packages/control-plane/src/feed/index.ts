export { EventFeed, type FeedListener } from './event-feed.ts';
export { subscribe, type Subscription } from './subscribe.ts';
export { watchEvents, type WatchedEvent, type WatchOptions } from './watch.ts';
