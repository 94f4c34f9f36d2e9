/**
 * The APIs between Drover's processes: the generated code, with one namespace for each proto package,
 * and helpers for it. The namespaces keep message names apart that occur in several packages.
 */
// Loaded before any connection: each process that uses one of these APIs imports this package.
import './http2-lifetime.ts';

export * as api from './generated/drover/api/v1/api_pb.ts';
export * as control from './generated/drover/control/v1/control_pb.ts';
export * as gatewayv1 from './generated/drover/gateway/v1/gateway_pb.ts';
export * as init from './generated/drover/init/v1/init_pb.ts';
export * as link from './link.ts';
export * as sandbox from './generated/drover/sandbox/v1/sandbox_pb.ts';
export { actionsOf, containmentActions, containmentOf, type ContainmentAction } from './containment.ts';
export { errorFromWire, errorToWire } from './errors.ts';
export { methodDefinition } from './grpc.ts';
export { readHostStream, writeHostStream } from './host-stream.ts';
export { LogPosition, type KeptOutput } from './log-position.ts';
export { maxTunnelFrameBytes } from './limits.ts';
export { TunnelStream, type TunnelCall } from './tunnel.ts';
export {
  desiredStates,
  hostStates,
  sandboxStates,
  type DesiredStateName,
  type HostStateName,
  type SandboxStateName,
  type StateWords,
} from './states.ts';
