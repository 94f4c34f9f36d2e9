import { createServer } from 'node:net';
import { create, type MessageShape } from '@bufbuild/protobuf';
import { DroverError, type Logger, version } from '@drover/foundation';
import { gatewayv1, serviceDefinition } from '@drover/protocol';
import {
  Metadata,
  Server,
  ServerCredentials,
  status,
  type handleServerStreamingCall,
  type handleUnaryCall,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
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

type Apply = MessageShape<typeof gatewayv1.ApplyPoliciesRequestSchema>;
type Applied = MessageShape<typeof gatewayv1.ApplyPoliciesResponseSchema>;
type WatchAsk = MessageShape<typeof gatewayv1.WatchRefusalsRequestSchema>;
type Refusal = MessageShape<typeof gatewayv1.RefusalSchema>;
type HealthAsk = MessageShape<typeof gatewayv1.HealthRequestSchema>;
type Health = MessageShape<typeof gatewayv1.HealthResponseSchema>;

/** Serves the control API of the gateway. Returns how to stop. @throws {DroverError} when the socket cannot be listened on */
export async function serveControl(options: ControlServiceOptions): Promise<() => Promise<void>> {
  const { table, logger } = options;
  const applyPolicies: handleUnaryCall<Apply, Applied> = (call, answer) => {
    try {
      table.apply(updateFromWire(call.request));
      options.onApplied?.();
      logger.debug({ version: String(table.version), sandboxes: table.size }, 'policies in force');
      answer(null, create(gatewayv1.ApplyPoliciesResponseSchema, { version: table.version }));
    } catch (thrown) {
      const error = DroverError.from(thrown);
      logger.warn({ code: error.code, err: error.message }, 'policy table refused');
      answer({ code: statuses[error.status] ?? status.UNKNOWN, details: error.message, metadata: errorMetadata(error) });
    }
  };
  const health: handleUnaryCall<HealthAsk, Health> = (_, answer) => {
    const { connections, allowed, denied } = options.stats();
    answer(
      null,
      create(gatewayv1.HealthResponseSchema, {
        version: table.version,
        connections: BigInt(connections),
        allowed: BigInt(allowed),
        denied: BigInt(denied),
        pid: process.ppid,
        programVersion: version,
        listening: [...options.listening],
      }),
    );
  };
  const watchRefusals: handleServerStreamingCall<WatchAsk, Refusal> = (call) => {
    const stop = options.refusals.listen(({ sandbox, method, host, port, rule, count, at }) => {
      // An agent that does not read loses reports, not memory: they are in the log as well.
      if (call.writableLength >= limits.refusalsWaiting) return;
      call.write(create(gatewayv1.RefusalSchema, { sandboxId: sandbox, method, host, port, rule, count, atMs: BigInt(at) }));
    });
    call.on('cancelled', () => {
      stop();
      call.end();
    });
  };
  const server = new Server({ 'grpc.max_receive_message_length': limits.controlMessageBytes });
  const handlers: UntypedServiceImplementation = { applyPolicies, health, watchRefusals };
  server.addService(serviceDefinition(gatewayv1.GatewayService), handlers);
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const listener = createServer((socket) => injector.injectConnection(socket));
  await new Promise<void>((resolve, reject) => {
    listener.once('error', (error) => reject(DroverError.from(error, 'unavailable')));
    listener.listen(options.listen, resolve);
  });
  return async () => {
    const closed = new Promise((resolve) => listener.close(resolve));
    server.forceShutdown();
    injector.destroy();
    await closed;
  };
}

/** Our numbers are gRPC's; the library has a type of its own for them. */
const statuses: Readonly<Record<number, status>> = Object.fromEntries(
  Object.values(status)
    .filter((s) => typeof s === 'number')
    .map((s) => [s, s]),
);

function errorMetadata(error: DroverError): Metadata {
  const metadata = new Metadata();
  metadata.set('drover-code', error.code);
  if (error.hint !== undefined) metadata.set('drover-hint', encodeURIComponent(error.hint));
  return metadata;
}
