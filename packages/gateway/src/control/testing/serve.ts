import { silentLogger } from '@drover/foundation/log';
import { RefusalReports, serveControl } from '../../egress/index.ts';
import { PolicyTable } from '../../policy/index.ts';

/** For tests: the gateway's control API on a Unix socket, without the gateway's proxy. Returns its stop. */
export async function serveControlAlone(socket: string): Promise<() => Promise<void>> {
  const stats = (): { connections: number; allowed: number; denied: number } => ({ connections: 0, allowed: 0, denied: 0 });
  return await serveControl({
    listen: { path: socket },
    table: new PolicyTable(),
    stats,
    listening: [],
    refusals: new RefusalReports(),
    logger: silentLogger,
  });
}
