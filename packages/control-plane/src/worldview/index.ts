export { emptyView } from './apply.ts';
export { StoredWorldview, type StoredWorldviewOptions } from './stored.ts';
export type { IdentityView, InitView, SandboxView, SessionView, TrustCheck, TrustCheckName, Worldview } from './worldview.ts';
