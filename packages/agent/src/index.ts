export type { Images } from './images/images.ts';
export type { Network } from './network/network.ts';
export type { Runtime } from './runtimes/runtime.ts';
export type { Sandboxes } from './sandboxes/sandboxes.ts';
