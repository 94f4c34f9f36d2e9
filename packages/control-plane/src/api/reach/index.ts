export { inTime, silentError, UploadWatch } from './deadlines.ts';
export { callHost, callHosts, failureError, forEachHost, hostsOf } from './hosts.ts';
export { endedError, hasEnded, refusePaused } from './ended-sandbox.ts';
export { replayMain } from './exit-replay.ts';
export { brokenCallError, foreignPeerError, hostDownError, refuseDownHost, sessionClient } from './host-down.ts';
export { hostLogs, hostStream } from './host-stream.ts';
export { connectionBroke, peerIsForeign } from './peer-errors.ts';
