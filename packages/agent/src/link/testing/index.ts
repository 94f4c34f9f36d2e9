export { FakeSandboxes, noImages, noVolumes } from './fake-sandboxes.ts';
