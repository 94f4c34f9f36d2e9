/** How this sandbox proves who it is: its certificate and its registration. */
export { Identity } from './identity.ts';
