export { GatewayClient, type GatewayHealth, type GatewayRefusal } from './client.ts';
export { serveControl, type ControlServiceOptions } from './service.ts';
