/** The control plane: everything behind `drover serve`. */
export type { Hub } from './hub/index.ts';
export type { Sessions } from './sessions/index.ts';
export { startControlPlane, type ControlPlane, type ControlPlaneOptions, type ListenAddress } from './server/index.ts';
export type { Store } from './store/index.ts';
