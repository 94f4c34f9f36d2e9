export type { Hub } from './hub/hub.ts';
export type { Sessions } from './sessions/sessions.ts';
export type { Store } from './store/store.ts';
