import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { init } from '@drover/protocol';
import type { Handlers } from './call.ts';
import { serve } from '../service.ts';
import { createStrictServer, type ServerIdentity } from './tls.ts';

/** For tests: init's listener and gRPC server without a sandbox. Every call fails. @returns the port */
export async function serveInitAlone(identity: ServerIdentity, controlPlaneUri: string): Promise<number> {
  const fails = async (): Promise<never> => await Promise.reject(new Error('there is no sandbox'));
  const handlers = Object.fromEntries(init.InitService.methods.map(({ localName }) => [localName, fails])) as unknown as Handlers;
  const grpc = serve({ warn: () => undefined }, handlers);
  const { listener } = createStrictServer({
    identity,
    controlPlaneUri,
    peerAddress: '127.0.0.1',
    accept: (socket) => grpc.accept(socket),
    refused: () => undefined,
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  return (listener.address() as AddressInfo).port;
}
