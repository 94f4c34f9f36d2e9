import type { ServerHttp2Session } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { fastifyConnectPlugin } from '@connectrpc/connect-fastify';
import { DroverError } from '@drover/foundation';
import { fastify } from 'fastify';
import {
  apiConnectionWindowBytes,
  apiMaxConnections,
  apiShutdownGraceMs,
  apiStreamWindowBytes,
  maxRequestBytes,
  maxStreamsPerConnection,
} from '../limits.ts';
import { limitConnections, type ApiContext, apiEdge } from './edge/index.ts';
import { addServices } from './services/index.ts';

export interface ApiServer {
  readonly port: number;
  /** Takes effect for new connections; open ones are left alone. */
  rotate(identity: ServerIdentity): void;
  /** Takes nothing new, gives calls a moment to end, then cuts them. */
  close(): Promise<void>;
}

export interface ServerIdentity {
  /** Leaf first, then the CA. PEM. */
  readonly certificatePem: string;
  readonly keyPem: string;
}

/**
 * The public API: Connect, gRPC and gRPC-Web on one TLS port, HTTP/2 and HTTP/1.1; and /healthz and /readyz.
 * @throws {DroverError} port-in-use, missing-privilege
 */
export async function startApi(
  context: ApiContext,
  options: { readonly host: string; readonly port: number; readonly identity: ServerIdentity },
): Promise<ApiServer> {
  const app = fastify({
    http2: true,
    https: {
      allowHTTP1: true,
      minVersion: 'TLSv1.3',
      ...tlsOf(options.identity),
      settings: { maxConcurrentStreams: maxStreamsPerConnection, initialWindowSize: apiStreamWindowBytes },
    },
    bodyLimit: maxRequestBytes,
    forceCloseConnections: true,
  });
  const server = app.server;
  server.maxConnections = apiMaxConnections;
  limitConnections(server, context.clock);
  const sessions = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    session.setLocalWindowSize(apiConnectionWindowBytes);
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
    // A connection that breaks is seen by its streams.
    session.on('error', () => undefined);
  });

  const stop = new AbortController();
  await app.register(fastifyConnectPlugin, {
    ...apiEdge(context, stop.signal),
    routes: (router) => addServices(router, context),
  });
  app.get('/healthz', () => ({ status: 'ok' }));
  app.get('/readyz', async (_request, reply) => {
    try {
      await context.store.events.lastId();
      return stop.signal.aborted ? await reply.code(503).send({ status: 'stopping' }) : { status: 'ready' };
    } catch (error) {
      context.logger.warn({ err: error }, 'the store does not answer');
      return await reply.code(503).send({ status: 'the store does not answer' });
    }
  });

  try {
    await app.listen({ host: options.host, port: options.port });
  } catch (error) {
    await app.close();
    throw DroverError.from(error);
  }
  return {
    port: (server.address() as AddressInfo).port,
    rotate: (identity) => server.setSecureContext(tlsOf(identity)),
    close: async () => {
      stop.abort(new DroverError('unavailable', 'the server stops', { hint: 'try again in a moment' }));
      // Streams end by the signal; a connection that lingers is cut.
      const cut = setTimeout(() => {
        for (const session of sessions) session.destroy();
      }, apiShutdownGraceMs);
      for (const session of sessions) session.close();
      await app.close();
      clearTimeout(cut);
    },
  };
}

function tlsOf({ certificatePem, keyPem }: ServerIdentity): { readonly cert: string; readonly key: string } {
  return { cert: certificatePem, key: keyPem };
}
