/** The control plane: everything behind `drover serve`. */
export type { Hub } from './hub/hub.ts';
export type { Sessions } from './sessions/sessions.ts';
export { startControlPlane, type ControlPlane, type ControlPlaneOptions, type ListenAddress } from './serve.ts';
export type { Store } from './store/store.ts';
