export { GatewayClient, type GatewayHealth } from './client.ts';
export { serveControl, type ControlServiceOptions } from './service.ts';
