export { inTime, silentError, UploadWatch } from './deadlines.ts';
export { eachOf } from './each-host.ts';
export { ended, endedError, hostLogs, refusePaused, replayMain } from './exit-replay.ts';
export { brokenCallError, foreignPeerError, hostDownError, refuseDownHost, sessionClient } from './host-down.ts';
export { hostStream } from './host-stream.ts';
export { connectionBroke, peerIsForeign } from './peer-errors.ts';
