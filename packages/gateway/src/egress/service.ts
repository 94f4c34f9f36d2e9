import { createServer } from 'node:net';
import { create, type MessageShape } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { BoundedQueue, DroverError, systemClock, version, type Logger } from '@drover/foundation';
import { gatewayv1 } from '@drover/protocol';
import { GrpcServer, methodsOf } from '@drover/protocol/grpc-server';
import { rpcEdge } from '@drover/protocol/rpc';
import { limits } from '../limits.ts';
import { updateFromWire, type PolicyTable } from '../policy/index.ts';
import type { EgressStats } from './proxy.ts';
import type { RefusalReports } from './refusal-reports.ts';

export interface ControlServiceOptions {
  /** The listening unix socket, or its path; only the agent may be able to open it. */
  readonly listen: { readonly fd: number } | { readonly path: string };
  readonly table: PolicyTable;
  readonly stats: () => EgressStats;
  readonly refusals: RefusalReports;
  /** Called after each change of the table. */
  readonly onApplied?: () => void;
  /** Where the proxy listens, `address:port`. */
  readonly listening: readonly string[];
  readonly logger: Logger;
}

/** Serves the control API of the gateway. Returns how to stop. @throws {DroverError} when the socket cannot be listened on */
export async function serveControl(options: ControlServiceOptions): Promise<() => Promise<void>> {
  const { logger } = options;
  const server = new GrpcServer(methodsOf(gatewayv1.GatewayService, controlService(options)), {
    edge: rpcEdge({ logger, clock: systemClock, maxMessageBytes: limits.controlMessageBytes }),
    maxConcurrentCalls: limits.controlCalls,
    lingerMs: limits.controlLingerMs,
  });
  const listener = createServer((socket) => server.accept(socket));
  await new Promise<void>((resolve, reject) => {
    listener.once('error', (error) => reject(DroverError.from(error, 'unavailable')));
    listener.listen(options.listen, resolve);
  });
  return async () => {
    const closed = new Promise((resolve) => listener.close(resolve));
    await server.close(0);
    await closed;
  };
}

function controlService(options: ControlServiceOptions): ServiceImpl<typeof gatewayv1.GatewayService> {
  const { table, logger } = options;
  return {
    applyPolicies(request) {
      table.apply(updateFromWire(request));
      options.onApplied?.();
      logger.debug({ version: String(table.version), sandboxes: table.size }, 'policies in force');
      return create(gatewayv1.ApplyPoliciesResponseSchema, { version: table.version });
    },

    health() {
      const { connections, allowed, denied } = options.stats();
      return create(gatewayv1.HealthResponseSchema, {
        version: table.version,
        connections: BigInt(connections),
        allowed: BigInt(allowed),
        denied: BigInt(denied),
        pid: process.ppid,
        programVersion: version,
        listening: [...options.listening],
      });
    },

    watchRefusals: (_request, { signal }) => watchRefusals(options.refusals, signal),
  };
}

/** Reports of refusals, until the signal aborts. An agent that does not read loses reports, not memory: they are in the log as well. */
async function* watchRefusals(
  reports: RefusalReports,
  signal: AbortSignal,
): AsyncGenerator<MessageShape<typeof gatewayv1.RefusalSchema>, void, undefined> {
  const capacity = limits.refusalsWaiting;
  const queue = new BoundedQueue<MessageShape<typeof gatewayv1.RefusalSchema>>({ name: 'the refusals', capacity, dropOldest: true });
  const stop = reports.listen(({ sandbox, method, host, port, rule, count, at }) => {
    queue.push(create(gatewayv1.RefusalSchema, { sandboxId: sandbox, method, host, port, rule, count, atMs: BigInt(at) }));
  });
  const end = (): void => queue.end();
  signal.addEventListener('abort', end, { once: true });
  try {
    yield* queue;
  } finally {
    signal.removeEventListener('abort', end);
    stop();
  }
}
