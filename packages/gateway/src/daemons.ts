import type { GatewayDaemon } from './daemon.ts';
import { limits } from './limits.ts';

/** The daemons of the gateway. A new one is its own folder and a row here. */
export const daemons: readonly GatewayDaemon[] = [
  {
    name: 'egress',
    sockets: ({ controlSocket, proxies }) => [
      ...proxies.map((at) => ({ name: 'proxy', at })),
      { name: 'control', at: { path: controlSocket, mode: 0o600 } },
    ],
    env: { UV_THREADPOOL_SIZE: String(limits.egressThreads) },
    policy: { stopGraceMs: limits.daemonStopGraceMs, restartUnhealthyAfterMs: 0 },
    restartSignal: 'SIGUSR1',
    run: async (context) => await (await import('./egress/index.ts')).runEgress(context),
  },
];
