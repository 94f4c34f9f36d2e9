export type { ServerIdentity } from './credentials.ts';
export { isObservation } from './hub.ts';
export type { CallOptions, HostStreamSource, Hub, HubListener, Observation, Operation, ResultValue, TunnelTarget } from './hub.ts';
export { LinkServer, type LinkServerOptions, type LinkServerStats } from './link-server.ts';
export type { RampOptions } from './ramp.ts';
export type { InboundHandler } from './tunnels.ts';
