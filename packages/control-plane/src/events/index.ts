export { eventKinds, type EventDraft, type StoredEvent } from './event.ts';
export type * from './typed.ts';
