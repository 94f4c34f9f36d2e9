import { DroverError, type Logger } from '@drover/foundation';
import { serveControl } from './control/index.ts';
import { EgressProxy, type EgressProxyOptions, type ListenOn } from './egress/index.ts';
import { PolicyTable } from './policy/index.ts';

export interface GatewayOptions {
  /** Path of the unix socket of the control API (mode 0600). */
  readonly controlSocket: string;
  readonly listen: readonly ListenOn[];
  /** Whom to become once the sockets are open; needs root. */
  readonly runAs?: { readonly uid: number; readonly gid: number };
  readonly logger: Logger;
  /** The gateway's lifetime. */
  readonly signal: AbortSignal;
  readonly resolve?: EgressProxyOptions['resolve'];
  readonly own?: EgressProxyOptions['own'];
  /** Called once everything listens. */
  readonly onReady?: (listening: readonly { readonly address: string; readonly port: number }[]) => void;
}

/**
 * Runs a gateway until `signal` aborts. It starts with an empty table, which refuses everything, and keeps what the agent
 * applies in memory: it serves on while the agent is away, and the agent applies the whole table again when it finds a new one.
 * @throws {DroverError} port-in-use, missing-privilege
 */
export async function runGateway(options: GatewayOptions): Promise<void> {
  const { logger, signal } = options;
  signal.throwIfAborted();
  const table = new PolicyTable();
  const { resolve, own } = options;
  const proxy = new EgressProxy({ table, logger, ...(resolve && { resolve }), ...(own && { own }) });
  let stopControl: (() => Promise<void>) | undefined;
  try {
    const listening = [];
    for (const on of options.listen) listening.push(await proxy.listen(on));
    stopControl = await serveControl({
      socket: options.controlSocket,
      table,
      stats: () => proxy.stats(),
      refusals: proxy.refusals,
      listening: listening.map((l) => `${l.family === 'IPv6' ? `[${l.address}]` : l.address}:${l.port}`),
      logger,
    });
    if (options.runAs !== undefined) dropPrivileges(options.runAs);
    logger.info({ listening: listening.map((l) => `${l.address}:${l.port}`), uid: process.getuid?.() }, 'gateway ready');
    options.onReady?.(listening);
    await aborted(signal);
  } finally {
    await stopControl?.();
    await proxy.close();
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}

/** What parses bytes from sandboxes is not root: the sockets are open, the code is loaded, nothing else needs it. */
function dropPrivileges(runAs: { readonly uid: number; readonly gid: number }): void {
  if (process.getuid?.() !== 0) throw new DroverError('missing-privilege', 'only root can run the gateway as another user');
  process.setgroups?.([]);
  process.setgid?.(runAs.gid);
  process.setuid?.(runAs.uid);
  if (process.getuid() !== runAs.uid) throw new DroverError('internal', `the gateway could not become uid ${runAs.uid}`);
}
