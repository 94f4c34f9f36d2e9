export { SandboxListener, type SandboxListenerOptions } from './listener.ts';
