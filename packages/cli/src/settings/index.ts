export { checkHostFlags, loadHostSettings, saveHostSettings, type HostFlags, type HostSettings } from './host.ts';
export { claim, release, runningServer } from './instance.ts';
export { defaultDataDirectory, linkListen, parseListen, parseLiveness, parsePublicHost, type LivenessFlags } from './listen.ts';
