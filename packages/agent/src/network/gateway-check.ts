import { once } from 'node:events';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { errnoOf } from '@drover/foundation';
import { GatewayClient } from '@drover/gateway';
import { proxyPort } from '../limits.ts';
import type { Finding } from '../finding.ts';
import { defaultPool, gatewayAddressOf } from './addresses.ts';

/**
 * Checks for `drover doctor` whether the gateway of a host can have its address, which a gateway without an agent may still hold. For root, since
 * other users cannot query the host's own gateway.
 * @param pool the host's. @throws {DroverError} invalid-config
 */
export async function checkGateway(stateDirectory: string, pool = defaultPool): Promise<Finding> {
  const subject = 'gateway';
  const address = gatewayAddressOf(pool);
  const place = `${address}:${proxyPort}`;
  const errno = await tryListen(address);
  // Otherwise free, or absent: the agent makes the address.
  if (errno !== 'EADDRINUSE') return { level: 'ok', subject, message: `no other process holds ${place}`, hint: '' };
  const client = new GatewayClient(join(stateDirectory, 'gateway', 'control.sock'));
  try {
    const health = await client.health();
    if (health.listening.includes(place)) return { level: 'ok', subject, message: `it runs at ${place}`, hint: '' };
  } catch {
    // Not a gateway of this host; the hint finds the process.
  } finally {
    client.close();
  }
  return {
    level: 'problem',
    subject,
    message: `${place}, where the gateway of this host is to listen, is held by another process: no sandbox can start`,
    hint: `see which with \`ss -Hltnp sport = :${proxyPort}\`: end it if it is a gateway that was left, or start this host with another --pool`,
  };
}

async function tryListen(host: string): Promise<string | undefined> {
  const server = createServer();
  try {
    server.listen({ host, port: proxyPort, exclusive: true });
    await once(server, 'listening');
    return undefined;
  } catch (error) {
    return errnoOf(error);
  } finally {
    server.close();
  }
}
