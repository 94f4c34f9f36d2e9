export type { ControlPlane, ControlPlaneOptions, ListenAddress } from './options.ts';
export { startControlPlane } from './server.ts';
