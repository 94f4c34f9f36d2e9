export { FakeSandboxes, noImages } from './fake-sandboxes.ts';
