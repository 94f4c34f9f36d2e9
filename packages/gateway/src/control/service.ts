import { chmod, mkdir, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
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
import type { EgressStats, RefusalReports } from '../egress/index.ts';
import { limits } from '../limits.ts';
import type { PolicyTable } from '../policy/index.ts';
import { updateFromWire } from './table-update.ts';

export interface ControlServiceOptions {
  /** Path of the unix socket, made with mode 0600; one left by a dead gateway is replaced. */
  readonly socket: string;
  readonly table: PolicyTable;
  readonly stats: () => EgressStats;
  readonly refusals: RefusalReports;
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

/** Serves the gateway's control API. Gives the way to stop. @throws {DroverError} when the socket cannot be made */
export async function serveControl(options: ControlServiceOptions): Promise<() => Promise<void>> {
  const { socket, table, logger } = options;
  const applyPolicies: handleUnaryCall<Apply, Applied> = (call, answer) => {
    try {
      table.apply(updateFromWire(call.request));
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
        pid: process.pid,
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
  await mkdir(dirname(socket), { recursive: true, mode: 0o700 });
  await rm(socket, { force: true });
  // Nobody else may connect even between bind and chmod.
  const umask = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(DroverError.from(error, 'unavailable')),
      );
    });
  } finally {
    process.umask(umask);
  }
  await chmod(socket, 0o600);
  return async () => {
    server.forceShutdown();
    // Without privileges the directory is not ours any more; the next gateway removes what is left.
    await rm(socket, { force: true }).catch(() => undefined);
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
