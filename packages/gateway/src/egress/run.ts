import { fromBinary, toBinary } from '@bufbuild/protobuf';
import { DroverError, type Logger } from '@drover/foundation';
import { gatewayv1 } from '@drover/protocol';
import type { DaemonContext } from '../daemon.ts';
import { PolicyTable, updateFromWire, updateToWire } from '../policy/index.ts';
import { SurvivingState } from '../state.ts';
import { EgressProxy } from './proxy.ts';
import { serveControl } from './service.ts';

/**
 * The egress daemon: the proxy, and the control API by which the agent applies policies and reads reports. Its first table is empty and
 * refuses everything. A replacement starts with the table of its predecessor, so that a restart refuses nothing that was allowed.
 */
export async function runEgress({ sockets, stateFd, logger, signal, ready }: DaemonContext): Promise<void> {
  const [control] = sockets.get('control') ?? [];
  if (control === undefined) throw new DroverError('invalid-config', 'the egress daemon was passed no control socket');
  const table = new PolicyTable();
  const state = stateFd === undefined ? undefined : new SurvivingState(stateFd);
  restore(table, state, logger);
  const proxy = new EgressProxy({ table, logger });
  let stopControl: (() => Promise<void>) | undefined;
  try {
    const listening: string[] = [];
    for (const fd of sockets.get('proxy') ?? []) {
      const { address, family, port } = await proxy.listen({ fd });
      listening.push(`${family === 'IPv6' ? `[${address}]` : address}:${port}`);
    }
    stopControl = await serveControl({
      listen: { fd: control },
      table,
      onApplied: () => state?.write(toBinary(gatewayv1.ApplyPoliciesRequestSchema, updateToWire(table.snapshot()))),
      stats: () => proxy.stats(),
      refusals: proxy.refusals,
      listening,
      logger,
    });
    logger.info({ listening }, 'egress listens');
    ready();
    await aborted(signal);
  } finally {
    await stopControl?.();
    await proxy.close();
  }
}

function restore(table: PolicyTable, state: SurvivingState | undefined, logger: Logger): void {
  const snapshot = state?.read();
  if (snapshot === undefined) return;
  table.apply(updateFromWire(fromBinary(gatewayv1.ApplyPoliciesRequestSchema, snapshot)));
  logger.info({ version: String(table.version), sandboxes: table.size }, 'the policies of the previous process are in force');
}

async function aborted(signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
