export { GatewayClient, type GatewayHealth, type GatewayRefusal } from './client.ts';
